#include "http/unix_socket.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

#include "base/error.h"

namespace duet {

sockaddr_un unix_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    throw Error(ErrorKind::kInvalidArgument, path + ": too long for a Unix socket");
  path.copy(address.sun_path, path.size());
  return address;
}

int connect_to_path(const std::string& path) {
  const sockaddr_un address = unix_address(path);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return fd;
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
}

}  // namespace duet
