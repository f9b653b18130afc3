// Unix sockets as the HTTP client and server name them: a host that holds a '/' is the path of one.
#pragma once

#include <sys/un.h>

#include <string>

namespace duet {

inline bool is_socket_path(const std::string& host) {
  return host.find('/') != std::string::npos;
}

/// Throws Error(kInvalidArgument) where the path is too long.
sockaddr_un unix_address(const std::string& path);

/// A blocking socket that is connected to it; -1 and errno where nobody listens.
int connect_to_path(const std::string& path);

}  // namespace duet
