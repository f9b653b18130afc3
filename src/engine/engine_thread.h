// EngineThread: an engine that runs by itself. Requests are submitted and aborted from any thread and
// take effect before the next step; deltas come back through each request's sink, on the engine's
// thread. Used by the server. Always holds: every submitted request gets its finishes, also when it is
// aborted, when a rank fails, and when this is destroyed.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/generation.h"

namespace duet {

/// How full the engine is and what it has done, as of the end of the last step.
struct EngineLoad {
  int64_t running = 0, waiting = 0;  // continuations; waiting includes those not yet taken over
  int64_t kv_blocks = 0, kv_blocks_used = 0;
  int64_t preemptions = 0, prefix_queries = 0, prefix_hits = 0;
  int64_t steps = 0, steps_overlapped = 0;
  int64_t prefill_tokens = 0, decode_tokens = 0;  // computed
  double step_seconds = 0, exposed_seconds = 0, comm_seconds = 0;
  double busy_seconds = 0;  // with requests at hand: steps and all that lay between them
};

class EngineThread {
 public:
  /// `on_step` (may be empty) hears of every step, on the engine's thread.
  EngineThread(Engine& engine, std::function<void(const Step&, const StepResult&)> on_step);
  /// Aborts what still runs.
  ~EngineThread();
  EngineThread(const EngineThread&) = delete;
  EngineThread& operator=(const EngineThread&) = delete;

  /// Returns the number that abort() takes. Throws Error(kPeer) once the engine has failed.
  int64_t submit(GenerationRequest request, DeltaSink sink);
  void abort(int64_t id);
  /// Every request ends with kAbort before the next step.
  void abort_all();
  /// Runs `work` between two steps and returns when it is done.
  void call(const std::function<void(Engine&)>& work);

  EngineLoad load() const;
  /// Empty while the engine works; else why it does not. `on_failure` is called once, on its thread.
  std::string failure() const;
  void set_on_failure(std::function<void(const std::string&)> on_failure);
  /// How long the step that is being computed has taken so far, in ns; 0 between steps.
  int64_t step_running_ns() const;

 private:
  using Work = std::function<void()>;

  void post(Work work);
  void loop();
  bool take_work(std::vector<Work>& work);
  void step();
  void note_load();

  Engine& engine_;
  std::function<void(const Step&, const StepResult&)> on_step_;
  std::atomic<int64_t> step_began_ns_{0};
  double busy_seconds_ = 0;
  int64_t idle_since_ns_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable posted_;
  std::vector<Work> inbox_;
  int64_t submitted_waiting_ = 0;  // continuations in the inbox
  bool stop_ = false;
  std::string failure_;
  std::function<void(const std::string&)> on_failure_;
  EngineLoad load_;
  std::jthread thread_;
};

}  // namespace duet
