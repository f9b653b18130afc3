// --help of Duet and of each verb, and the page docs/flags.md: all rendered from the flag table.
#pragma once

#include <string>

namespace duet {

struct VerbSpec;

/// `duet --help`: the verbs, and where to start.
std::string overview_help();
/// `duet VERB --help`: usage, what it does, an example, the flags by group.
std::string verb_help(const VerbSpec& verb);
/// docs/flags.md.
std::string flags_markdown();

}  // namespace duet
