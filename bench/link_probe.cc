// What a link carries: bulk TCP throughput, and the time of one message after a second of idleness.
// For bench/two_hosts.sh, which compiles this file by itself and runs `link_probe serve PORT` on one
// host and `link_probe measure ADDRESS PORT BULK_BYTES MESSAGE_BYTES` on another. The second prints
// "bulk bytes per second, message seconds". The server ends with its one client.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kTimeoutS = 20;        // of each read and write: a probe that hangs is worse than none
constexpr int kConnectTries = 100;   // the server may still be starting: 100 × 20 ms
constexpr size_t kBuffer = 1 << 18;  // per read and write; a reader sleeps until so much is there

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "link_probe: %s: %s\n", what, std::strerror(errno));
  std::exit(1);
}

void write_all(int fd, uint64_t bytes) {
  static const std::vector<char> zeros(kBuffer);
  while (bytes > 0) {
    const ssize_t n = send(fd, zeros.data(), std::min<uint64_t>(bytes, kBuffer), MSG_NOSIGNAL);
    if (n <= 0) fail("send");
    bytes -= static_cast<uint64_t>(n);
  }
}

void read_all(int fd, uint64_t bytes) {
  static std::vector<char> sink(kBuffer);
  while (bytes > 0) {
    const int wanted = static_cast<int>(std::min<uint64_t>(bytes, kBuffer));
    setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &wanted, sizeof wanted);
    const ssize_t n = recv(fd, sink.data(), std::min<uint64_t>(bytes, kBuffer), 0);
    if (n <= 0) fail("receive");
    bytes -= static_cast<uint64_t>(n);
  }
}

void set_up(int fd) {
  const int on = 1;
  const timeval timeout{kTimeoutS, 0};
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
}

sockaddr_in address_of(const char* host, const char* port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(std::atoi(port)));
  if (inet_pton(AF_INET, host, &address.sin_addr) != 1) {
    errno = EINVAL;
    fail(host);
  }
  return address;
}

// A request is a length and that many bytes; the answer is one byte.
int serve(const char* port) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  const int on = 1;
  const timeval timeout{kTimeoutS, 0};
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);  // accept() keeps to it too
  const sockaddr_in address = address_of("0.0.0.0", port);
  if (bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) fail("bind");
  if (listen(listener, 1) != 0) fail("listen");
  const int fd = accept(listener, nullptr, nullptr);
  if (fd < 0) fail("accept");
  set_up(fd);
  uint64_t bytes = 0;
  while (recv(fd, &bytes, sizeof bytes, MSG_WAITALL) == static_cast<ssize_t>(sizeof bytes)) {
    read_all(fd, bytes);
    write_all(fd, 1);
  }
  return 0;
}

double seconds_of(int fd, uint64_t bytes) {
  const Clock::time_point start = Clock::now();
  if (send(fd, &bytes, sizeof bytes, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof bytes)) fail("send");
  write_all(fd, bytes);
  read_all(fd, 1);
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int measure(const char* host, const char* port, uint64_t bulk, uint64_t message) {
  const sockaddr_in address = address_of(host, port);
  int fd = -1;
  for (int i = 0; i < kConnectTries; ++i) {
    fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) break;
    if (i + 1 == kConnectTries) fail("connect");
    close(fd);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  set_up(fd);
  seconds_of(fd, bulk / 8);  // windows open, what credit the link had is spent
  const double bulk_seconds = seconds_of(fd, bulk);
  std::this_thread::sleep_for(std::chrono::seconds(1));
  std::printf("%.0f %.6f\n", static_cast<double>(bulk) / bulk_seconds, seconds_of(fd, message));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view verb = argc > 1 ? argv[1] : "";
  if (verb == "serve" && argc == 3) return serve(argv[2]);
  if (verb == "measure" && argc == 6)
    return measure(argv[2], argv[3], std::strtoull(argv[4], nullptr, 10),
                   std::strtoull(argv[5], nullptr, 10));
  std::fprintf(stderr, "usage: link_probe serve PORT | link_probe measure ADDRESS PORT BULK MESSAGE\n");
  return 2;
}
