#include <unistd.h>

#include <iostream>

#include "cli/cli.h"

extern char** environ;

int main(int argc, char** argv) {
  const duet::Environment env = duet::process_environment(environ);
  const std::vector<std::string> args(argv + (argc > 0 ? 1 : 0), argv + argc);
  const duet::CliContext context{env, std::cout, std::cerr, isatty(STDERR_FILENO) == 1,
                                 argc > 0 ? argv[0] : "duet"};
  const int code = duet::run_cli(args, context);
  std::cout.flush();
  if (code != 0 || std::cout) return code;
  std::cerr << "duet: cannot write to standard output: is the disk full, or was it closed?\n";
  return duet::kExitError;
}
