// The one binary's front door: `duet VERB …`. main() and the tests call run_cli with everything it
// may look at, so nothing here reads the process's own arguments, environment or streams.
// Always holds: every error is one line "duet VERB: …" on `err`; results go to `out` or to files.
#pragma once

#include <iosfwd>
#include <map>
#include <string>
#include <vector>

namespace duet {

using Environment = std::map<std::string, std::string>;

/// Where a verb reads and writes.
struct CliContext {
  const Environment& env;
  std::ostream& out;
  std::ostream& err;
  bool err_is_terminal = false;  // a progress bar instead of a line now and then
  std::string program = "duet";  // how this binary was started, for re-running it
};

inline constexpr int kExitOk = 0;
inline constexpr int kExitError = 1;
inline constexpr int kExitUsage = 2;

/// `args` without the program's name. Returns the exit code; throws nothing.
int run_cli(const std::vector<std::string>& args, const CliContext& context);

/// Environment of this process as a map.
Environment process_environment(const char* const* envp);

}  // namespace duet
