// Server: an engine behind OpenAI's HTTP interface. `duet serve` makes one, and so do tests. Destruction
// aborts what still runs; shut_down() lets it finish first.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/engine_thread.h"
#include "serve/call.h"
#include "serve/http_server.h"
#include "serve/metrics.h"
#include "serve/reasoning.h"
#include "serve/step_log.h"
#include "serve/work_queue.h"

namespace duet {

struct ServerOptions {
  HttpServerOptions http;
  std::vector<std::string> served_names;  // the first one answers; empty: the model's path
  std::vector<std::string> api_keys;      // empty: none is asked for
  std::vector<std::string> allowed_origins = {"*"};
  bool allow_credentials = false;
  int64_t max_waiting = 1024;  // requests that wait to be run, beyond it 429
  std::string version;
  ReasoningStyle reasoning = ReasoningStyle::kNone;
  CallLimits limits;
};

class Reply;

class Server {
 public:
  /// Serves from now on. `engine` must outlive this.
  Server(Engine& engine, ServerOptions options);
  ~Server();

  int port() const { return http_->port(); }
  /// No new connections or requests; returns when what runs has been answered, or after `seconds`: what is
  /// left then ends with finish reason "abort".
  void shut_down(double seconds);
  /// Why the engine stopped working; empty while it does.
  std::string failure() const;
  /// A watchdog's look at the engine: how long its step has taken so far (0: none), and what has been done.
  struct Pulse {
    int64_t step_ns = 0;
    uint64_t stages_done = 0;
  };
  Pulse pulse() const { return {thread_->step_running_ns(), engine_.ranks().stages_done()}; }
  /// The engine hangs and will not come back: every request gets this as its error, new ones are refused.
  /// Returns when the answers are out, or after a few seconds. The server cannot be destroyed any more.
  void give_up(const std::string& why);

 private:
  void handle(const std::shared_ptr<Exchange>& exchange);
  void answer(const std::shared_ptr<Exchange>& exchange);
  bool answer_get(const std::shared_ptr<Exchange>& exchange);
  void answer_post(const std::shared_ptr<Exchange>& exchange);
  void check_key(const HttpRequest& request) const;
  void add_cors(const std::shared_ptr<Exchange>& exchange) const;
  void generate(const std::shared_ptr<Exchange>& exchange, bool chat);
  std::string checked_model(const std::string& name) const;
  std::string models() const;
  std::string tokenize(const std::string& body) const;
  std::string detokenize(const std::string& body) const;

  Engine& engine_;
  ServerOptions options_;
  const int64_t created_;
  ServerMetrics metrics_;
  std::atomic<int64_t> live_{0};
  std::atomic<bool> stopping_{false};
  StepLog steps_;
  mutable std::mutex mutex_;  // guards the next two
  std::string given_up_;
  std::vector<std::weak_ptr<Reply>> under_way_;
  // In this order: replies outlive the engine's thread, which feeds them, and workers, which start them.
  std::unique_ptr<WorkQueue> replies_;
  std::unique_ptr<EngineThread> thread_;
  std::unique_ptr<WorkQueue> workers_;
  std::unique_ptr<HttpServer> http_;
};

}  // namespace duet
