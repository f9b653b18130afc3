#include "serve/connection.h"

#include <sys/epoll.h>

#include <array>
#include <utility>

#include "base/clock.h"

namespace duet {

namespace {
constexpr size_t kReadBytes = 64 * 1024;
// After a refusal the peer may still be sending: what it sends is read and dropped for so long, or the
// reset of our closing would take the reply from it.
constexpr int64_t kDrainNs = 3'000'000'000;
}  // namespace

Connection::Connection(int64_t id, int fd, const TlsContext* tls, const ConnectionLimits& limits,
                       std::shared_ptr<LoopWaker> waker, const Handler& handler)
    : id_(id),
      stream_(fd, tls),
      limits_(limits),
      waker_(std::move(waker)),
      handler_(handler),
      parser_(limits.max_body_bytes),
      read_deadline_(now_ns() + limits.header_ns) {
  set_events();
}

Connection::~Connection() {
  if (exchange_) exchange_->peer_closed();
}

// Pending input is only asked for while a request is being read; while one is worked on, epoll still tells
// of a peer that hung up.
void Connection::set_events() {
  events_ = half_closed_ ? 0u : EPOLLRDHUP;
  if (phase_ != Phase::kWorking || write_wants_read_) events_ |= EPOLLIN;
  if (write_blocked_ && !write_wants_read_) events_ |= EPOLLOUT;
}

bool Connection::on_ready(bool readable, bool hung_up) {
  bool alive = true;
  if (write_blocked_ || hung_up) alive = write_more();
  if (hung_up && phase_ == Phase::kWorking) {
    if (!reply_ended_) return false;
    half_closed_ = true;  // it may still be reading the end of its reply
  }
  if (alive && readable && phase_ != Phase::kWorking) alive = read_more();
  if (alive) alive = advance();
  set_events();
  return alive;
}

bool Connection::on_reply() {
  const bool alive = write_more() && advance();
  set_events();
  return alive;
}

// Once a reply is through, the next request: it may lie in input_ already.
bool Connection::advance() {
  while (phase_ == Phase::kWorking && reply_ended_ && written_ == output_.size()) {
    const bool keep = exchange_->request().keep_alive && !closing_;
    exchange_.reset();
    output_.clear();
    written_ = 0;
    reply_ended_ = false;
    if (!keep) {
      stream_.shutdown_write();
      phase_ = Phase::kDraining;
      read_deadline_ = now_ns() + kDrainNs;
      return true;
    }
    phase_ = Phase::kReading;
    read_deadline_ = now_ns() + limits_.idle_ns;
    const std::string input = std::exchange(input_, {});
    if (!input.empty() && !accept_bytes(input)) return false;
  }
  return true;
}

bool Connection::read_more() {
  std::array<char, kReadBytes> buffer;
  while (phase_ != Phase::kWorking) {
    size_t got = 0;
    const IoResult result = stream_.read(buffer.data(), buffer.size(), got);
    if (result == IoResult::kClosed) return false;
    if (result != IoResult::kDone) {
      write_blocked_ = write_blocked_ || result == IoResult::kWantWrite;
      return true;
    }
    if (phase_ == Phase::kReading && !accept_bytes({buffer.data(), got})) return false;
    if (phase_ == Phase::kReading && !write_more()) return false;
  }
  return true;
}

bool Connection::accept_bytes(std::string_view bytes) {
  const int64_t now = now_ns();
  const bool had_begun = parser_.begun();
  size_t used = 0;
  const RequestParser::State state = parser_.feed(bytes, used);
  if (state == RequestParser::State::kFailed) {
    reject(parser_.status(), parser_.message());
    return true;
  }
  if (parser_.begun() && !had_begun) read_deadline_ = now + limits_.header_ns;
  if (parser_.in_body() && !std::exchange(in_body_, true)) {
    body_bytes_ = 0;
    read_deadline_ = now + limits_.body_ns;
  } else if (in_body_ && (body_bytes_ += used) >= kReadBytes) {
    body_bytes_ = 0;
    read_deadline_ = now + limits_.body_ns;
  }
  if (parser_.take_expectation() && state == RequestParser::State::kMore)
    output_ += "HTTP/1.1 100 Continue\r\n\r\n";
  if (state == RequestParser::State::kComplete) {
    input_.assign(bytes.substr(used));
    dispatch();
  }
  return true;
}

void Connection::dispatch() {
  in_body_ = false;
  phase_ = Phase::kWorking;
  exchange_ = std::make_shared<Exchange>(parser_.take(), id_, waker_);
  handler_(exchange_);
}

void Connection::reject(int status, const std::string& message) {
  HttpRequest request;
  request.keep_alive = false;
  exchange_ = std::make_shared<Exchange>(std::move(request), id_, waker_);
  phase_ = Phase::kWorking;
  exchange_->respond(status, kJsonType, error_body(status, message));
}

bool Connection::write_more() {
  if (exchange_ && !reply_ended_) reply_ended_ = exchange_->drain(output_);
  write_blocked_ = write_wants_read_ = false;
  bool progressed = false;
  while (written_ < output_.size()) {
    size_t done = 0;
    const IoResult result = stream_.write(output_.data() + written_, output_.size() - written_, done);
    if (result == IoResult::kClosed) return false;
    if (result != IoResult::kDone) {
      if (progressed || write_deadline_ == 0) write_deadline_ = now_ns() + limits_.write_ns;
      write_blocked_ = true;
      write_wants_read_ = result == IoResult::kWantRead;
      if (written_ > kReadBytes) {
        output_.erase(0, written_);
        written_ = 0;
      }
      return output_.size() <= limits_.max_unread_bytes + limits_.max_body_bytes;
    }
    written_ += done;
    progressed = true;
  }
  write_deadline_ = 0;
  output_.clear();
  written_ = 0;
  return true;
}

bool Connection::on_time(int64_t now) {
  if (write_deadline_ != 0 && now > write_deadline_) return false;
  if (phase_ == Phase::kWorking || now <= read_deadline_) return true;
  if (phase_ == Phase::kDraining || !parser_.begun()) return false;
  reject(408, "the request did not arrive in time");
  return on_reply();
}

}  // namespace duet
