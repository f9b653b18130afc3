#include "comm/tcp_connect.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>

#include "base/cpu.h"
#include "base/error.h"
#include "base/log.h"
#include "comm/tcp_address.h"

namespace duet {

namespace {

constexpr int kConnectTimeoutMs = 3000;  // per address: a firewall that drops packets says nothing
constexpr int kReplyTimeoutMs = 5000;    // the other side may be handling a stranger
constexpr int kHelloTimeoutMs = 1000;    // a rank says who it is at once
// As much as the kernel grants: a message of a MiB is handed over at once, and a peer that is busy
// computing does not stop its senders.
constexpr int kBufferBytes = 4 << 20;

struct Hello {
  std::array<char, 8> magic{'d', 'u', 'e', 't', 't', 'c', 'p', '1'};
  uint64_t nonce = 0;
  int32_t from = 0;
  int32_t to = 0;
};
static_assert(sizeof(Hello) == 24);

// What a rank tells the others before anybody connects.
struct Card {
  std::string host;
  std::string machine;  // boot id and network namespace: equal where loopback reaches
  int port = 0;
  uint64_t nonce = 0;
  std::string error;
  std::vector<std::string> addresses;
};

std::string to_text(const Card& card) {
  std::string text =
      fmt::format("{}\n{}\n{}\n{}\n{}\n", card.host, card.machine, card.port, card.nonce, card.error);
  for (const std::string& address : card.addresses) text += address + "\n";
  return text;
}

Card card_of(const std::string& text) {
  Card card;
  std::istringstream in(text);
  std::string port, nonce;
  std::getline(in, card.host);
  std::getline(in, card.machine);
  std::getline(in, port);
  std::getline(in, nonce);
  std::getline(in, card.error);
  card.port = std::atoi(port.c_str());
  card.nonce = std::strtoull(nonce.c_str(), nullptr, 10);
  for (std::string address; std::getline(in, address);) card.addresses.push_back(address);
  return card;
}

std::string errno_text(int code) {
  return std::generic_category().message(code);
}

std::string machine_id() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  struct stat net {};
  stat("/proc/self/ns/net", &net);
  return fmt::format("{}.{}", boot, net.st_ino);
}

void set_int(const Socket& socket, int level, int option, int value) {
  setsockopt(socket.fd(), level, option, &value, sizeof(value));
}

// Before connect and listen: the window's scale is agreed on with the first packet.
void set_buffers(const Socket& socket) {
  set_int(socket, SOL_SOCKET, SO_SNDBUF, kBufferBytes);
  set_int(socket, SOL_SOCKET, SO_RCVBUF, kBufferBytes);
}

void set_receive_timeout(const Socket& socket, int ms) {
  const timeval t{ms / 1000, ms % 1000 * 1000};
  setsockopt(socket.fd(), SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t));
}

// A connection as the transport wants it.
void make_ready(const Socket& socket) {
  set_int(socket, IPPROTO_TCP, TCP_NODELAY, 1);
  // BBR arms a timer for every few packets, and each costs the computing core; on the short paths between
  // ranks it gains nothing. A kernel without cubic keeps what it has.
  setsockopt(socket.fd(), IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
  // A host that vanishes without a word is noticed after about a minute.
  set_int(socket, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_int(socket, IPPROTO_TCP, TCP_KEEPIDLE, 30);
  set_int(socket, IPPROTO_TCP, TCP_KEEPINTVL, 10);
  set_int(socket, IPPROTO_TCP, TCP_KEEPCNT, 3);
  set_int(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, 60'000);
  fcntl(socket.fd(), F_SETFL, fcntl(socket.fd(), F_GETFL) | O_NONBLOCK);
}

Socket new_socket(int family) {
  return Socket(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
}

// Both protocols on one socket, or IPv4 alone where the kernel has no other.
Socket listen_on(int port, int backlog, int* error) {
  for (const int family : {AF_INET6, AF_INET}) {
    Socket s = new_socket(family);
    if (!s) {
      *error = errno;
      continue;
    }
    if (family == AF_INET6) set_int(s, IPPROTO_IPV6, IPV6_V6ONLY, 0);
    set_int(s, SOL_SOCKET, SO_REUSEADDR, 1);
    set_buffers(s);
    const Address any = *parse_address(family == AF_INET6 ? "::" : "0.0.0.0", port);
    if (bind(s.fd(), reinterpret_cast<const sockaddr*>(&any.storage), any.length) == 0 &&
        ::listen(s.fd(), backlog) == 0)
      return s;
    *error = errno;
    if (*error == EADDRINUSE) break;
  }
  return {};
}

int port_of(const Socket& socket) {
  Address a;
  a.length = sizeof(a.storage);
  getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&a.storage), &a.length);
  return ntohs(a.family() == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&a.storage)->sin6_port
                                      : reinterpret_cast<sockaddr_in*>(&a.storage)->sin_port);
}

Socket open_listener(int ranks) {
  const std::string range = port_range_text();
  const auto [first, last] = parse_port_range(range);
  int error = 0;
  for (int port = first; port <= last; ++port) {
    if (Socket s = listen_on(port, std::max(ranks, 128), &error)) return s;
  }
  throw Error(ErrorKind::kPeer,
              range.empty()
                  ? fmt::format("can't listen for the other ranks: {}", errno_text(error))
                  : fmt::format("no free port in DUET_TCP_PORTS={} ({}); every rank of a host needs one",
                                range, errno_text(error)));
}

bool send_hello(const Socket& socket, const Hello& hello) {
  return send(socket.fd(), &hello, sizeof(hello), MSG_NOSIGNAL) == static_cast<ssize_t>(sizeof(hello));
}

std::optional<Hello> receive_hello(const Socket& socket, int timeout_ms) {
  set_receive_timeout(socket, timeout_ms);
  Hello hello;
  const ssize_t n = recv(socket.fd(), &hello, sizeof(hello), MSG_WAITALL);
  if (n != static_cast<ssize_t>(sizeof(hello)) || hello.magic != Hello{}.magic) return std::nullopt;
  return hello;
}

// Takes connections of higher ranks on a thread of its own, while this rank connects to lower ones.
class Acceptor {
 public:
  Acceptor(Socket listener, int rank, uint64_t nonce, std::vector<TcpPeer>& peers)
      : listener_(std::move(listener)),
        stop_(eventfd(0, EFD_CLOEXEC)),
        rank_(rank),
        nonce_(nonce),
        peers_(peers),
        thread_([this] { loop(); }) {}
  ~Acceptor() { finish(); }
  void finish() {
    if (!thread_.joinable()) return;
    const uint64_t one = 1;
    if (write(stop_.fd(), &one, sizeof(one)) == sizeof(one)) thread_.join();
  }

 private:
  void loop() {
    std::array<pollfd, 2> wait{{{listener_.fd(), POLLIN, 0}, {stop_.fd(), POLLIN, 0}}};
    while (true) {
      if (poll(wait.data(), wait.size(), -1) < 0 && errno != EINTR) return;
      if (wait[0].revents != 0) take_one();
      if (wait[1].revents != 0) return;
    }
  }
  void take_one() {
    Address from;
    from.length = sizeof(from.storage);
    Socket s(accept4(listener_.fd(), reinterpret_cast<sockaddr*>(&from.storage), &from.length, SOCK_CLOEXEC));
    if (!s) return;
    const std::optional<Hello> hello = receive_hello(s, kHelloTimeoutMs);
    if (!hello || hello->nonce != nonce_ || hello->to != rank_ || hello->from <= rank_ ||
        hello->from >= std::ssize(peers_)) {
      log_debug("rank {} refuses a connection from {}: not a rank of this job", rank_,
                shown(reinterpret_cast<const sockaddr*>(&from.storage), true));
      return;
    }
    Hello reply;
    reply.nonce = nonce_;
    reply.from = rank_;
    reply.to = hello->from;
    if (!send_hello(s, reply)) return;
    make_ready(s);
    peers_[static_cast<size_t>(hello->from)].socket = std::move(s);  // a second attempt replaces the first
  }

  Socket listener_;
  Socket stop_;
  int rank_;
  uint64_t nonce_;
  std::vector<TcpPeer>& peers_;
  std::thread thread_;
};

// Empty text on success, else why not.
std::string try_connect(const Address& address, const Hello& hello, Socket* result) {
  Socket s = new_socket(address.family());
  if (!s) return errno_text(errno);
  set_buffers(s);
  fcntl(s.fd(), F_SETFL, O_NONBLOCK);
  if (connect(s.fd(), reinterpret_cast<const sockaddr*>(&address.storage), address.length) != 0) {
    if (errno != EINPROGRESS) return errno_text(errno);
    pollfd wait{s.fd(), POLLOUT, 0};
    int ready = 0;
    do {
      ready = poll(&wait, 1, kConnectTimeoutMs);
    } while (ready < 0 && errno == EINTR);
    if (ready == 0) return fmt::format("no answer in {} s", kConnectTimeoutMs / 1000);
    int error = 0;
    socklen_t length = sizeof(error);
    getsockopt(s.fd(), SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) return errno_text(error);
  }
  fcntl(s.fd(), F_SETFL, 0);
  const bool sent = send_hello(s, hello);
  const std::optional<Hello> reply = sent ? receive_hello(s, kReplyTimeoutMs) : std::nullopt;
  if (!reply || reply->nonce != hello.nonce || reply->from != hello.to || reply->to != hello.from)
    return "who answers there is not that rank";
  make_ready(s);
  *result = std::move(s);
  return "";
}

// Addresses in a network that this host is on come first: others may be bridges inside the other host.
std::vector<std::string> in_order_of_hope(const Card& own, const Card& other) {
  if (own.machine == other.machine) return {"127.0.0.1", "::1"};
  std::vector<std::string> sorted = other.addresses;
  const auto near = [&](const std::string& text) {
    const auto address = parse_address(text, 0);
    return address && std::any_of(own.addresses.begin(), own.addresses.end(), [&](const std::string& mine) {
             const auto m = parse_address(mine, 0);
             return m && same_prefix(*m, *address, m->family() == AF_INET ? 24 : 64);
           });
  };
  std::stable_partition(sorted.begin(), sorted.end(), near);
  return sorted;
}

Socket connect_to(const Card& own, const Card& other, const Hello& hello) {
  std::string tried;
  for (const std::string& text : in_order_of_hope(own, other)) {
    const auto address = parse_address(text, other.port);
    if (!address) continue;
    Socket result;
    const std::string why = try_connect(*address, hello, &result);
    if (why.empty()) return result;
    tried += fmt::format("{}{}: {}", tried.empty() ? "" : "; ",
                         shown(reinterpret_cast<const sockaddr*>(&address->storage), true), why);
  }
  if (tried.empty()) {
    const std::string list = interface_list();
    tried = list.empty() ? "it has no address but loopback"
                         : fmt::format("it has no address in the interfaces \"{}\"", list);
  }
  throw Error(ErrorKind::kPeer,
              fmt::format("rank {} on {} can't connect to rank {} on {} ({}). Open these ports between the "
                          "hosts (DUET_TCP_PORTS=first-last chooses them), name the network "
                          "(DUET_TCP_INTERFACES=eth0 or 10.0.0.0/24), or use --comm-transport mpi",
                          hello.from, own.host, hello.to, other.host, tried));
}

// Every rank learns of every failure; the first is thrown on all of them.
void agree(const std::vector<std::string>& errors, int rank) {
  for (size_t r = 0; r < errors.size(); ++r) {
    if (errors[r].empty()) continue;
    throw Error(ErrorKind::kPeer,
                static_cast<int>(r) == rank ? errors[r] : fmt::format("rank {}: {}", r, errors[r]));
  }
}

}  // namespace

void Socket::reset() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

std::vector<TcpPeer> connect_ranks(JobWorld& world) {
  const int rank = world.rank();
  std::vector<TcpPeer> peers(static_cast<size_t>(world.size()));
  Card own;
  own.host = host_name();
  Socket listener;
  try {
    own.machine = machine_id();
    own.addresses = own_addresses();
    listener = open_listener(world.size());
    own.port = port_of(listener);
    if (getrandom(&own.nonce, sizeof(own.nonce), 0) != sizeof(own.nonce)) own.nonce ^= machine_id().size();
  } catch (const Error& e) {
    own.error = e.what();
  }
  std::vector<Card> cards;
  std::vector<std::string> errors;
  for (const std::string& text : world.all_gather(to_text(own))) {
    cards.push_back(card_of(text));
    errors.push_back(cards.back().error);
  }
  agree(errors, rank);
  for (size_t r = 0; r < peers.size(); ++r) peers[r].host = cards[r].host;
  const uint64_t nonce = cards[0].nonce;

  Acceptor acceptor(std::move(listener), rank, nonce, peers);
  std::string error;
  try {
    for (int other = 0; other < rank; ++other) {
      Hello hello;
      hello.nonce = nonce;
      hello.from = rank;
      hello.to = other;
      const size_t r = static_cast<size_t>(other);
      peers[r].socket = connect_to(own, cards[r], hello);
    }
  } catch (const Error& e) {
    error = e.what();
  }
  // A rank gets here when those below have answered it, so after this nobody connects any more.
  errors = world.all_gather(error);
  acceptor.finish();
  agree(errors, rank);
  return peers;
}

}  // namespace duet
