// `duet --hosts a,b …`: the same command again, as ranks on those hosts, under the mpirun of the MPI
// library that this build has. Called by run_cli before a verb runs, and by doctor to measure MPI.
// Always holds: a process that mpirun or srun started never starts another mpirun, and the command
// that ranks get carries none of the flags that belong to the launch.
#pragma once

#include <string>
#include <vector>

#include "cli/cli.h"

namespace duet {

class Flags;

struct HostSlots {
  std::string name;
  int slots = 0;  // ranks there
};

/// "a,b:2" spread over `ranks` ranks (0: as many as the list has). Without a single ":N" the hosts get
/// equal shares. The same host twice counts twice. Throws UsageError where that does not come out even.
std::vector<HostSlots> parse_hosts(const std::string& list, int ranks, const std::string& shown);

/// Words of a line as a shell splits them: blanks, '…', "…", backslash; nothing is expanded. Throws
/// UsageError naming `shown` at an open quote.
std::vector<std::string> split_words(const std::string& line, const std::string& shown);
/// The words as a line that a shell reads back.
std::string quote_words(const std::vector<std::string>& words);

/// The mpirun of this build's library: Debian's own name for it, else the plain name. "" without one.
std::string find_mpirun(const Environment& env);

/// mpirun and its arguments for `program` (this binary's path and its arguments) on the hosts of
/// --hosts; without --hosts, for two ranks on this machine. Throws UsageError or Error: no MPI in this
/// build, no mpirun or another library's, hosts and ranks that do not match.
std::vector<std::string> launch_command(const Flags& flags, const CliContext& context,
                                        const std::vector<std::string>& program);

/// Absolute path of this binary.
std::string own_path();

/// mpirun, its arguments and its environment for `duet VERB ARGS…` without the launch's own flags. Throws as
/// launch_command does.
struct Launch {
  std::vector<std::string> words;
  std::vector<std::string> environment;  // "NAME=value"
};
Launch launch_of(const Flags& flags, const std::vector<std::string>& args, const CliContext& context);

/// As exec and posix_spawn want them: pointers into `words`, a null at the end.
std::vector<char*> pointers_to(std::vector<std::string>& words);

/// Becomes mpirun, running `duet VERB ARGS…` without the launch's own flags; with --print-launch prints
/// that line instead and returns 0. Throws as launch_command does.
int launch(const Flags& flags, const std::vector<std::string>& args, const CliContext& context);

}  // namespace duet
