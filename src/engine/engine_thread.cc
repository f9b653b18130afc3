#include "engine/engine_thread.h"

#include <exception>
#include <utility>

#include "base/call_through.h"
#include "base/clock.h"
#include "base/error.h"
#include "engine/engine.h"

namespace duet {

EngineThread::EngineThread(Engine& engine, std::function<void(const Step&, const StepResult&)> on_step)
    : engine_(engine), on_step_(std::move(on_step)) {
  note_load();
  thread_ = std::jthread([this] { loop(); });
}

EngineThread::~EngineThread() {
  abort_all();
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  posted_.notify_one();
  thread_.join();
}

void EngineThread::post(Work work) {
  {
    std::lock_guard lock(mutex_);
    inbox_.push_back(std::move(work));
  }
  posted_.notify_one();
}

int64_t EngineThread::submit(GenerationRequest request, DeltaSink sink) {
  const int64_t id = engine_.next_request_id();
  const int64_t arrival = now_ns();
  auto shared = std::make_shared<GenerationRequest>(std::move(request));
  {
    std::lock_guard lock(mutex_);
    if (!failure_.empty()) throw Error(ErrorKind::kPeer, failure_);
    const int n = shared->params.n;
    submitted_waiting_ += n;
    inbox_.push_back([this, id, arrival, shared, n, to = std::move(sink)]() mutable {
      {
        std::lock_guard relock(mutex_);
        submitted_waiting_ -= n;
      }
      engine_.generator().add(id, std::move(*shared), std::move(to), arrival);
    });
  }
  posted_.notify_one();
  return id;
}

void EngineThread::abort(int64_t id) {
  post([this, id] { engine_.generator().abort(id); });
}

void EngineThread::abort_all() {
  post([this] { engine_.generator().abort_all(); });
}

void EngineThread::call(const std::function<void(Engine&)>& work) {
  call_through([this](Work item) { post(std::move(item)); }, [&] { work(engine_); });
}

EngineLoad EngineThread::load() const {
  std::lock_guard lock(mutex_);
  EngineLoad now = load_;
  now.waiting += submitted_waiting_;
  return now;
}

std::string EngineThread::failure() const {
  std::lock_guard lock(mutex_);
  return failure_;
}

void EngineThread::set_on_failure(std::function<void(const std::string&)> on_failure) {
  std::lock_guard lock(mutex_);
  on_failure_ = std::move(on_failure);
}

int64_t EngineThread::step_running_ns() const {
  const int64_t began = step_began_ns_.load();
  return began == 0 ? 0 : now_ns() - began;
}

// False when it is time to end: told so, and nothing left to do.
bool EngineThread::take_work(std::vector<Work>& work) {
  std::unique_lock lock(mutex_);
  const bool busy = engine_.generator().has_work();
  if (!busy) {
    posted_.wait(lock, [&] { return stop_ || !inbox_.empty(); });
    idle_since_ns_ = now_ns();  // what follows is work again
  }
  work.swap(inbox_);
  return !work.empty() || busy || !stop_;
}

void EngineThread::loop() {
  std::vector<Work> work;
  while (take_work(work)) {
    for (const Work& item : work) item();
    work.clear();
    if (engine_.generator().has_work()) step();
    note_load();
  }
}

void EngineThread::step() {
  step_began_ns_ = now_ns();
  std::exception_ptr error;
  std::string text;
  try {
    const Step& done = engine_.generator().step();
    if (on_step_) on_step_(done, engine_.generator().last_result());
  } catch (const std::exception& e) {
    error = std::current_exception();
    text = e.what();
  }
  step_began_ns_ = 0;
  const int64_t now = now_ns();
  busy_seconds_ += static_cast<double>(now - idle_since_ns_) * 1e-9;
  idle_since_ns_ = now;
  if (!error) return;
  std::function<void(const std::string&)> on_failure;
  {
    std::lock_guard lock(mutex_);
    if (failure_.empty()) on_failure = on_failure_;
    failure_ = text;
  }
  engine_.generator().fail_all(error);
  if (on_failure) on_failure(text);
}

void EngineThread::note_load() {
  const Scheduler& scheduler = engine_.generator().scheduler();
  const EngineCounters& counters = engine_.counters();
  EngineLoad now;
  now.running = scheduler.running();
  now.waiting = scheduler.waiting();
  now.kv_blocks = engine_.blocks().total_blocks();
  now.kv_blocks_used = now.kv_blocks - engine_.blocks().free_blocks();
  now.preemptions = scheduler.preemptions();
  now.prefix_queries = scheduler.prefix_queries();
  now.prefix_hits = scheduler.prefix_hits();
  now.steps = counters.steps;
  now.steps_overlapped = counters.steps_overlapped;
  now.prefill_tokens = counters.prefill_tokens;
  now.decode_tokens = counters.decode_tokens;
  now.step_seconds = counters.step_ms * 1e-3;
  now.exposed_seconds = counters.exposed_ms * 1e-3;
  now.comm_seconds = counters.comm_ms * 1e-3;
  now.busy_seconds = busy_seconds_;
  std::lock_guard lock(mutex_);
  load_ = now;
}

}  // namespace duet
