// Front: the public side of a server whose ranks are processes of their own. It passes each request on to
// rank 0's Server over a Unix socket and the reply back, piece by piece; when the ranks end before a reply is
// complete, the reply still gets an end, with the reason. Made by `duet serve --hosts`, in the process that
// started the ranks and outlives them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "serve/http_server.h"

namespace duet {

class Front {
 public:
  /// Serves from now on. `rank_socket`: where rank 0's server listens.
  Front(const HttpServerOptions& options, std::string rank_socket);
  /// The ranks have ended by now, or calls to them would be waited for.
  ~Front();
  Front(const Front&) = delete;
  Front& operator=(const Front&) = delete;

  int port() const { return http_->port(); }
  /// No new connections; returns when what runs has been answered, or after `seconds`.
  void shut_down(double seconds);
  /// The ranks have ended: what is unanswered gets this as its error, as do new requests. Returns when the
  /// answers are out, or after a few seconds.
  void give_up(const std::string& why);

 private:
  void begin(const std::shared_ptr<Exchange>& exchange);
  void relay(const std::shared_ptr<Exchange>& exchange);
  void fail(const std::shared_ptr<Exchange>& exchange, const std::string& what);
  void wait_for_replies(double seconds);

  const std::string socket_;
  std::atomic<int64_t> live_{0};  // calls to rank 0
  std::mutex mutex_;              // guards given_up_
  std::condition_variable gave_up_;
  std::string given_up_;
  std::unique_ptr<HttpServer> http_;
};

/// Whether somebody listens on a Unix socket.
bool is_listening(const std::string& path);

}  // namespace duet
