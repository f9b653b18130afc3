// `duet serve --hosts a,b`: the process that the user started stays, as the public side of the server
// (serve/front.h) and as the supervisor of the ranks, which mpirun starts. When ranks end, their requests get
// the reason and this process exits with an error; when it ends, so do the ranks.
#pragma once

#include <string>
#include <vector>

#include "cli/cli.h"

namespace duet {

class Flags;
struct HttpServerOptions;

/// Of the ranks: the path of the Unix socket that rank 0 listens on in place of --host and --port.
inline constexpr const char* kServeSocketVariable = "DUET_SERVE_SOCKET";

/// `args`: those of the verb, as typed. Returns an exit code; throws as launch_command does.
int serve_on_hosts(const Flags& flags, const std::vector<std::string>& args, const CliContext& context);

/// What --host, --port, --ssl-… and the limits say.
HttpServerOptions http_options(const Flags& flags);
/// "http://127.0.0.1:8000".
std::string address_of(const HttpServerOptions& options, int port);

}  // namespace duet
