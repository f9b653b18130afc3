// Exchange: one request and the reply to it. The HTTP server makes it and hands it to the handler; any
// thread may then answer, at once or piece by piece. Always holds: replies to a peer that has gone are
// dropped silently, and on_close tells so once.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "serve/http_message.h"

namespace duet {

/// How an exchange tells the server's loop that there is something to write.
class LoopWaker {
 public:
  virtual ~LoopWaker() = default;
  virtual void wake(int64_t connection) = 0;
};

class Exchange {
 public:
  Exchange(HttpRequest request, int64_t connection, std::shared_ptr<LoopWaker> waker);

  const HttpRequest& request() const { return request_; }
  /// Sent with every reply; before it begins.
  void add_header(const std::string& name, const std::string& value);
  /// The whole reply.
  void respond(int status, std::string_view content_type, std::string_view body,
               const HttpHeaders& headers = {});
  /// A reply in pieces: send() them, then end().
  void begin_stream(int status, std::string_view content_type);
  void send(std::string_view piece);
  void end();
  bool begun() const;
  bool closed() const;
  /// `action` runs once when the peer goes away before the reply has ended, on the server's thread; at
  /// once where it has already gone.
  void on_close(std::function<void()> action);

  // For the connection.
  /// Moves what is to be written to the end of `out`; true when that was the last of it.
  bool drain(std::string& out);
  void peer_closed();
  int status() const;

 private:
  std::string head(int status, std::string_view content_type, const HttpHeaders& headers) const;
  void wake();

  const HttpRequest request_;
  const int64_t connection_;
  const std::shared_ptr<LoopWaker> waker_;
  mutable std::mutex mutex_;
  HttpHeaders headers_;
  std::string out_;
  int status_ = 0;
  bool begun_ = false, ended_ = false, closed_ = false, chunked_ = false;
  std::function<void()> on_close_;
};

}  // namespace duet
