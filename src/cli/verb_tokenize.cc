#include "cli/cli.h"
#include "cli/verbs.h"
namespace duet {
int verb_tokenize(const Flags&, const CliContext&) {
  return 1;
}
}  // namespace duet
