#include "serve/http_server.h"

#include <fmt/format.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <unordered_set>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "http/unix_socket.h"

namespace duet {

namespace {
constexpr uint64_t kListener = 1, kWake = 2;
constexpr int kTickMs = 250;  // how late a deadline may be noticed
// Without descriptors there is nothing to accept with: give the connections that there are time to end.
constexpr int64_t kAcceptPauseNs = 200'000'000;

void watch(int epoll, int operation, int fd, uint32_t events, uint64_t id) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = id;
  epoll_ctl(epoll, operation, fd, &event);
}
}  // namespace

class HttpServer::Waker final : public LoopWaker {
 public:
  Waker() : fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    if (fd_ < 0) throw Error(ErrorKind::kResourceExhausted, "no descriptor for the HTTP server's loop");
  }
  ~Waker() override { close(fd_); }
  int fd() const { return fd_; }
  void wake(int64_t connection) override {
    {
      std::lock_guard lock(mutex_);
      if (!ready_.insert(connection).second || ready_.size() > 1) return;
    }
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(fd_, &one, sizeof one);
  }
  std::unordered_set<int64_t> take() {
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t got = read(fd_, &count, sizeof count);
    std::lock_guard lock(mutex_);
    return std::exchange(ready_, {});
  }

 private:
  int fd_;
  std::mutex mutex_;
  std::unordered_set<int64_t> ready_;
};

HttpServer::HttpServer(const HttpServerOptions& options, Connection::Handler handler)
    : options_(options), handler_(std::move(handler)) {
  if (options.tls.certificate.empty() != options.tls.key.empty())
    throw Error(ErrorKind::kInvalidArgument, "TLS needs both --ssl-certfile and --ssl-keyfile");
  if (!options.tls.certificate.empty()) tls_ = std::make_unique<TlsContext>(options.tls);
  waker_ = std::make_shared<Waker>();
  if (is_socket_path(options.host))
    listen_on_path(options.host);
  else
    listen_on(options.host, options.port);
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  watch(epoll_, EPOLL_CTL_ADD, listener_, EPOLLIN, kListener);
  watch(epoll_, EPOLL_CTL_ADD, waker_->fd(), EPOLLIN, kWake);
  thread_ = std::thread([this] { loop(); });
}

HttpServer::~HttpServer() {
  stop_ = true;
  waker_->wake(0);
  thread_.join();
  connections_.clear();
  if (listener_ >= 0) close(listener_);
  close(epoll_);
}

void HttpServer::listen_on(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const std::string service = std::to_string(port);
  const int error = getaddrinfo(host.empty() ? nullptr : host.c_str(), service.c_str(), &hints, &found);
  if (error != 0)
    throw Error(ErrorKind::kInvalidArgument, fmt::format("--host {}: {}", host, gai_strerror(error)));
  int reason = 0;
  for (const addrinfo* a = found; a && listener_ < 0; a = a->ai_next) {
    const int fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    const int one = 1;
    if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd >= 0 && bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, 1024) == 0) {
      listener_ = fd;
      break;
    }
    reason = errno;
    if (fd >= 0) close(fd);
  }
  freeaddrinfo(found);
  if (listener_ < 0)
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("cannot listen on {} port {}: {}; choose another --host or --port", host, port,
                            std::strerror(reason)));
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  getsockname(listener_, reinterpret_cast<sockaddr*>(&bound), &size);
  port_ = ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port
                                            : reinterpret_cast<sockaddr_in*>(&bound)->sin_port);
}

// Whoever may write to the path's folder may connect.
void HttpServer::listen_on_path(const std::string& path) {
  const sockaddr_un address = unix_address(path);
  unlink(path.c_str());
  listener_ = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (listener_ < 0 || bind(listener_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      listen(listener_, 1024) != 0)
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("cannot listen on {}: {}", path, std::strerror(errno)));
}

void HttpServer::stop_accepting() {
  stop_accepting_ = true;
  waker_->wake(0);
}

void HttpServer::loop() {
  // OpenSSL writes without MSG_NOSIGNAL: a peer that is gone must not end the process.
  sigset_t pipe;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe, nullptr);
  std::array<epoll_event, 256> events;
  int64_t looked_after = now_ns();
  while (!stop_) {
    const int count = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), kTickMs);
    for (int i = 0; i < count; ++i) {
      const epoll_event& event = events[static_cast<size_t>(i)];
      if (event.data.u64 == kListener) {
        accept_all();
      } else if (event.data.u64 == kWake) {
        serve_replies();
      } else {
        const auto id = static_cast<int64_t>(event.data.u64);
        const auto found = connections_.find(id);
        if (found == connections_.end()) continue;
        const bool hung_up = (event.events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
        settle(id, found->second->on_ready((event.events & EPOLLIN) != 0 || hung_up, hung_up));
      }
    }
    if (stop_accepting_ && accepting_) begin_stopping();
    const int64_t now = now_ns();
    if (now - looked_after < int64_t{kTickMs} * 1'000'000) continue;
    looked_after = now;
    look_after(now);
  }
}

void HttpServer::begin_stopping() {
  accepting_ = false;
  epoll_ctl(epoll_, EPOLL_CTL_DEL, listener_, nullptr);
  close(std::exchange(listener_, -1));
  std::vector<int64_t> idle;
  for (const auto& [id, connection] : connections_) {
    connection->close_after_reply();
    if (connection->idle()) idle.push_back(id);
  }
  for (const int64_t id : idle) forget(id);
}

void HttpServer::refuse_one(int fd) {
  const std::string body = error_body(503, "too many connections (--max-connections)");
  const std::string reply = fmt::format(
      "HTTP/1.1 503 {}\r\nContent-Type: application/json\r\nRetry-After: 1\r\nContent-Length: {}\r\n"
      "Connection: close\r\n\r\n{}",
      http_reason(503), body.size(), body);
  if (!tls_) ::send(fd, reply.data(), reply.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  close(fd);
}

void HttpServer::accept_all() {
  while (true) {
    const int fd = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      if (errno == EMFILE || errno == ENFILE) {
        log_warning("no file descriptors left for further connections (ulimit -n)");
        watch(epoll_, EPOLL_CTL_MOD, listener_, 0, kListener);
        accept_again_ns_ = now_ns() + kAcceptPauseNs;
      }
      return;
    }
    if (static_cast<int64_t>(connections_.size()) >= options_.max_connections) {
      refuse_one(fd);
      continue;
    }
    const int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    const int64_t id = next_id_++;
    try {
      auto connection = std::make_unique<Connection>(id, fd, tls_.get(), options_.limits, waker_, handler_);
      watched_[id] = connection->events();
      watch(epoll_, EPOLL_CTL_ADD, fd, connection->events(), static_cast<uint64_t>(id));
      connections_.emplace(id, std::move(connection));
    } catch (const Error& error) {
      log_warning("{}", error.what());
    }
    connections_count_ = static_cast<int64_t>(connections_.size());
  }
}

void HttpServer::serve_replies() {
  for (const int64_t id : waker_->take()) {
    const auto found = connections_.find(id);
    if (found != connections_.end()) settle(id, found->second->on_reply());
  }
}

void HttpServer::look_after(int64_t now) {
  if (accept_again_ns_ != 0 && now > accept_again_ns_ && accepting_) {
    accept_again_ns_ = 0;
    watch(epoll_, EPOLL_CTL_MOD, listener_, EPOLLIN, kListener);
  }
  std::vector<int64_t> ids;
  for (const auto& [id, connection] : connections_) ids.push_back(id);
  for (const int64_t id : ids) settle(id, connections_.at(id)->on_time(now));
}

void HttpServer::settle(int64_t id, bool alive) {
  if (!alive) {
    forget(id);
    return;
  }
  const Connection& connection = *connections_.at(id);
  uint32_t& watched = watched_[id];
  if (watched == connection.events()) return;
  watched = connection.events();
  watch(epoll_, EPOLL_CTL_MOD, connection.fd(), watched, static_cast<uint64_t>(id));
}

void HttpServer::forget(int64_t id) {
  connections_.erase(id);  // closing takes the descriptor out of epoll
  watched_.erase(id);
  connections_count_ = static_cast<int64_t>(connections_.size());
}

}  // namespace duet
