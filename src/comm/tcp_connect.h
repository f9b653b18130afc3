// Sets up one TCP connection between each pair of ranks: every rank listens, tells the others where,
// and connects to those below it. A handshake with a number drawn by rank 0 keeps strangers out.
// Ranks in one network namespace of one machine use loopback. Called by TcpTransport.
//   DUET_TCP_PORTS=first-last     listen on these ports (for firewalls), one per rank of a host
//   DUET_TCP_INTERFACES=eth0,10.0.0.0/8   addresses to offer and in which order; default: Open MPI's
//                                 btl_tcp_if_include (as OMPI_MCA_btl_tcp_if_include), else all
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

/// Items of DUET_TCP_INTERFACES: the place of the first item that names the interface or holds the address
/// (text, IPv4 or IPv6), or -1. Throws Error(kInvalidArgument) for an item that is neither name nor CIDR.
int match_interface(const std::string& list, const std::string& interface, const std::string& address);

/// "first-last" or "port"; throws Error(kInvalidArgument). {0, 0} for an empty text: any port.
std::pair<int, int> parse_port_range(const std::string& text);

}  // namespace duet
