// One connection of the HTTP server: reads requests, hands them over one at a time, writes replies, and
// keeps the peer to its deadlines. Lives on the server's loop; only its Exchange is seen by other threads.
// A peer that sends headers or a body too slowly, or does not read its reply, is dropped; one that hangs up
// while its request is being worked on is noticed at once.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "serve/exchange.h"
#include "serve/request_parser.h"
#include "serve/tls.h"

namespace duet {

struct ConnectionLimits {
  size_t max_body_bytes = 16u << 20;
  int64_t header_ns = 10'000'000'000;   // for all headers of a request
  int64_t body_ns = 20'000'000'000;     // for every 64 KiB of a body
  int64_t idle_ns = 75'000'000'000;     // between requests
  int64_t write_ns = 60'000'000'000;    // in which some of a reply must be taken
  size_t max_unread_bytes = 64u << 20;  // of a reply that its reader leaves lying
};

class Connection {
 public:
  using Handler = std::function<void(const std::shared_ptr<Exchange>&)>;

  Connection(int64_t id, int fd, const TlsContext* tls, const ConnectionLimits& limits,
             std::shared_ptr<LoopWaker> waker, const Handler& handler);
  ~Connection();

  int fd() const { return stream_.fd(); }
  /// The descriptor is ready, a reply has grown, or time has passed. False: close and destroy it.
  bool on_ready(bool readable, bool hung_up);
  bool on_reply();
  bool on_time(int64_t now);
  /// What to wait for in epoll.
  uint32_t events() const { return events_; }
  bool idle() const { return phase_ == Phase::kReading && !parser_.begun(); }
  /// No further request is read once the present one is answered.
  void close_after_reply() { closing_ = true; }

 private:
  enum class Phase { kReading, kWorking, kDraining };

  bool advance();
  bool read_more();
  bool accept_bytes(std::string_view bytes);
  void dispatch();
  bool write_more();
  void reject(int status, const std::string& message);
  void set_events();

  const int64_t id_;
  SocketStream stream_;
  const ConnectionLimits& limits_;
  std::shared_ptr<LoopWaker> waker_;
  const Handler& handler_;
  RequestParser parser_;
  Phase phase_ = Phase::kReading;
  std::shared_ptr<Exchange> exchange_;
  std::string input_;  // behind the request that is being worked on
  std::string output_;
  size_t written_ = 0;  // of output_
  bool reply_ended_ = false, closing_ = false, half_closed_ = false, write_blocked_ = false,
       write_wants_read_ = false;
  int64_t read_deadline_, write_deadline_ = 0;
  bool in_body_ = false;
  size_t body_bytes_ = 0;
  uint32_t events_ = 0;
};

}  // namespace duet
