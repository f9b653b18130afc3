// Sets up one TCP connection between each pair of ranks: every rank listens, tells the others where,
// and connects to those below it. A handshake with a number drawn by rank 0 keeps strangers out.
// Ranks in one network namespace of one machine use loopback. Called by TcpTransport.
// Which addresses and ports: tcp_address.h.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "comm/job_world.h"

namespace duet {

/// A file descriptor that closes itself.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() { reset(); }
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  int fd() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void reset();

 private:
  int fd_ = -1;
};

struct TcpPeer {
  Socket socket;     // nonblocking; none for the rank itself
  std::string host;  // its host's name
};

/// One per rank. A collective; on failure every rank throws the first failing rank's Error.
std::vector<TcpPeer> connect_ranks(JobWorld& world);

}  // namespace duet
