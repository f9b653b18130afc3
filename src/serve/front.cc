#include "serve/front.h"

#include <fmt/format.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <initializer_list>
#include <system_error>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "http/http_client.h"
#include "http/unix_socket.h"

namespace duet {

namespace {

// No token may come for as long as requests queue in the engine.
constexpr int64_t kPatienceSeconds = 24 * 3600;
// Between the end of a rank's socket and the news of why.
constexpr auto kReasonPatience = std::chrono::seconds(3);

bool is_any_of(const std::string& name, std::initializer_list<const char*> names) {
  return std::any_of(names.begin(), names.end(),
                     [&](const char* other) { return strcasecmp(name.c_str(), other) == 0; });
}

// The client's half of what ends a call early: shutting its socket down while it is open.
class CallSocket {
 public:
  void set(int fd) {
    std::lock_guard lock(mutex_);
    fd_ = fd;
    if (cut_ && fd_ >= 0) ::shutdown(fd_, SHUT_RDWR);
  }
  void cut() {
    std::lock_guard lock(mutex_);
    cut_ = true;
    if (fd_ >= 0) ::shutdown(fd_, SHUT_RDWR);
  }

 private:
  std::mutex mutex_;
  int fd_ = -1;
  bool cut_ = false;
};

HttpCall call_of(const HttpRequest& request, const std::string& socket) {
  HttpCall call;
  call.server = {"http", socket, "", 0};
  // What a reply to HEAD leaves out the exchange knows.
  call.method = request.method == "HEAD" ? "GET" : request.method;
  static constexpr std::string_view kPlain = "/-._~:@!$&'()*+,;=";
  for (const char c : request.path) {
    const bool plain =
        std::isalnum(static_cast<unsigned char>(c)) || kPlain.find(c) != std::string_view::npos;
    call.path += plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  if (!request.query.empty()) call.path += "?" + request.query;
  for (const auto& [name, value] : request.headers) {
    if (!is_any_of(name,
                   {"host", "connection", "keep-alive", "content-length", "transfer-encoding", "expect"}))
      call.headers += fmt::format("{}: {}\r\n", name, value);
  }
  call.body = request.body;
  call.patience_seconds = kPatienceSeconds;
  return call;
}

}  // namespace

bool is_listening(const std::string& path) {
  const int fd = connect_to_path(path);
  if (fd >= 0) close(fd);
  return fd >= 0;
}

Front::Front(const HttpServerOptions& options, std::string rank_socket) : socket_(std::move(rank_socket)) {
  http_ = std::make_unique<HttpServer>(
      options, [this](const std::shared_ptr<Exchange>& exchange) { begin(exchange); });
}

Front::~Front() {
  http_.reset();  // its peers' calls are cut
  while (live_ > 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
}

// A thread for each call: they wait for bytes nearly always, and connections are limited.
void Front::begin(const std::shared_ptr<Exchange>& exchange) {
  ++live_;
  try {
    std::thread([this, exchange] {
      relay(exchange);
      --live_;
    }).detach();
  } catch (const std::system_error& e) {
    --live_;
    exchange->respond(503, kJsonType,
                      error_body(503, fmt::format("no thread for another request: {}", e.what())),
                      {{"Retry-After", "1"}});
  }
}

void Front::relay(const std::shared_ptr<Exchange>& exchange) {
  {
    std::lock_guard lock(mutex_);
    if (!given_up_.empty()) {
      exchange->respond(503, kJsonType, error_body(503, given_up_));
      return;
    }
  }
  const auto socket = std::make_shared<CallSocket>();
  HttpCall call = call_of(exchange->request(), socket_);
  std::string type, whole;
  bool in_pieces = false;
  call.on_socket = [&](int fd) { socket->set(fd); };
  call.on_head = [&](int status, const HttpHeaders& headers) {
    for (const auto& [name, value] : headers) {
      if (is_any_of(name, {"content-type"})) {
        type = value;
      } else if (is_any_of(name, {"transfer-encoding"})) {
        in_pieces = true;
      } else if (!is_any_of(name, {"connection", "content-length", "cache-control", "x-accel-buffering"})) {
        exchange->add_header(name, value);
      }
    }
    if (in_pieces) exchange->begin_stream(status, type);
  };
  exchange->on_close([socket] { socket->cut(); });
  try {
    const int status = http_call(call, [&](int, std::string_view piece) {
      if (in_pieces)
        exchange->send(piece);
      else
        whole += piece;
    });
    if (in_pieces)
      exchange->end();
    else
      exchange->respond(status, type, whole);
  } catch (const std::exception& e) {
    fail(exchange, e.what());
  }
}

void Front::fail(const std::shared_ptr<Exchange>& exchange, const std::string& what) {
  std::string why = what;
  if (!exchange->closed()) {
    std::unique_lock lock(mutex_);
    if (gave_up_.wait_for(lock, kReasonPatience, [&] { return !given_up_.empty(); })) why = given_up_;
  }
  if (exchange->begun()) {
    exchange->send("data: " + error_body(503, why) + "\n\n");
    exchange->end();
  } else {
    exchange->respond(503, kJsonType, error_body(503, why));
  }
}

void Front::wait_for_replies(double seconds) {
  const int64_t until = now_ns() + static_cast<int64_t>(seconds * 1e9);
  while ((live_ > 0 || http_->connections() > 0) && now_ns() < until)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

void Front::shut_down(double seconds) {
  http_->stop_accepting();
  wait_for_replies(seconds);
}

void Front::give_up(const std::string& why) {
  {
    std::lock_guard lock(mutex_);
    given_up_ = why;
  }
  gave_up_.notify_all();
  http_->stop_accepting();
  wait_for_replies(5);
}

}  // namespace duet
