#include "serve/exchange.h"

#include <fmt/format.h>

#include <iterator>
#include <utility>

#include "base/error.h"

namespace duet {

Exchange::Exchange(HttpRequest request, int64_t connection, std::shared_ptr<LoopWaker> waker)
    : request_(std::move(request)), connection_(connection), waker_(std::move(waker)) {}

void Exchange::add_header(const std::string& name, const std::string& value) {
  std::lock_guard lock(mutex_);
  headers_.emplace_back(name, value);
}

std::string Exchange::head(int status, std::string_view content_type, const HttpHeaders& headers) const {
  std::string text = fmt::format("HTTP/1.1 {} {}\r\n", status, http_reason(status));
  if (!content_type.empty()) text += fmt::format("Content-Type: {}\r\n", content_type);
  for (const HttpHeaders* list : {&headers_, &headers}) {
    for (const auto& [name, value] : *list) text += fmt::format("{}: {}\r\n", name, value);
  }
  text += request_.keep_alive ? "Connection: keep-alive\r\n" : "Connection: close\r\n";
  return text;
}

void Exchange::respond(int status, std::string_view content_type, std::string_view body,
                       const HttpHeaders& headers) {
  {
    std::lock_guard lock(mutex_);
    DUET_CHECK(!begun_);
    begun_ = ended_ = true;
    status_ = status;
    out_ += head(status, content_type, headers);
    if (status != 204) out_ += fmt::format("Content-Length: {}\r\n", body.size());
    out_ += "\r\n";
    if (request_.method != "HEAD") out_ += body;
    on_close_ = nullptr;
  }
  wake();
}

void Exchange::begin_stream(int status, std::string_view content_type) {
  {
    std::lock_guard lock(mutex_);
    DUET_CHECK(!begun_);
    begun_ = chunked_ = true;
    status_ = status;
    out_ += head(status, content_type, {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}});
    out_ += "Transfer-Encoding: chunked\r\n\r\n";
  }
  wake();
}

void Exchange::send(std::string_view piece) {
  if (piece.empty()) return;  // an empty chunk would be the end
  {
    std::lock_guard lock(mutex_);
    if (closed_ || ended_) return;
    fmt::format_to(std::back_inserter(out_), "{:x}\r\n", piece.size());
    out_ += piece;
    out_ += "\r\n";
  }
  wake();
}

void Exchange::end() {
  {
    std::lock_guard lock(mutex_);
    if (ended_) return;
    ended_ = true;
    on_close_ = nullptr;
    if (!closed_ && chunked_) out_ += "0\r\n\r\n";
  }
  wake();
}

bool Exchange::begun() const {
  std::lock_guard lock(mutex_);
  return begun_;
}

bool Exchange::closed() const {
  std::lock_guard lock(mutex_);
  return closed_;
}

int Exchange::status() const {
  std::lock_guard lock(mutex_);
  return status_;
}

void Exchange::on_close(std::function<void()> action) {
  {
    std::lock_guard lock(mutex_);
    if (ended_) return;
    if (!closed_) {
      on_close_ = std::move(action);
      return;
    }
  }
  action();
}

bool Exchange::drain(std::string& out) {
  std::lock_guard lock(mutex_);
  out += out_;
  out_.clear();
  return ended_;
}

void Exchange::peer_closed() {
  std::function<void()> action;
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    out_.clear();
    action = std::exchange(on_close_, nullptr);
  }
  if (action) action();
}

void Exchange::wake() {
  waker_->wake(connection_);
}

}  // namespace duet
