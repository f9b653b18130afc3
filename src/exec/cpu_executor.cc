#include "exec/cpu_executor.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <utility>

#include "base/clock.h"
#include "base/error.h"

namespace duet {

LanePlan::LanePlan(const Program& program) : stage_count_(program.stages.size()) {
  const std::vector<std::vector<int>> queues = program.queues();
  std::vector<uint32_t> position(program.stages.size()), place(program.stages.size());
  size_t waits = 0;
  for (const auto& lane : program.order)
    for (size_t i = 0; i < lane.size(); ++i) place[static_cast<size_t>(lane[i])] = static_cast<uint32_t>(i);
  for (const auto& queue : queues)
    for (size_t i = 0; i < queue.size(); ++i)
      position[static_cast<size_t>(queue[i])] = static_cast<uint32_t>(i);
  for (const auto& list : program.waits) waits += list.size();
  needs_.reserve(waits);  // the entries' views of it stay valid
  for (const auto& queue : queues) {
    Queue& entries = queues_.emplace_back();
    for (int s : queue) {
      const size_t first = needs_.size();
      for (int w : program.waits[static_cast<size_t>(s)])
        needs_.push_back({static_cast<uint32_t>(program.queue_of(w)), position[static_cast<size_t>(w)] + 1});
      entries.push_back({s, place[static_cast<size_t>(s)], std::span(needs_).subspan(first)});
    }
  }
}

namespace {

constexpr uint32_t kEverything = UINT32_MAX;  // "finished" of a lane that gave up

/// One stage on the calling thread, its times (but for wait_ns) and where the lane is.
void run_stage(size_t lane, int stage, const StageBody& body, StageTime& time, LaneProgress* progress) {
  const auto note = [&](int at) {
    if (progress) progress->stage[lane].store(at, std::memory_order_relaxed);
  };
  const int64_t cpu = thread_cpu_ns();
  time.start_ns = now_ns();
  note(stage);
  body();
  note(-1);
  time.end_ns = now_ns();
  time.cpu_ns = thread_cpu_ns() - cpu;
  if (progress) progress->stages_done.fetch_add(1, std::memory_order_relaxed);
}

// The first stage in the lane's order, of those at the heads of the compute lane's queues, that needs nothing
// more, as its queue; 0: none. `next`: how far each queue is; `finished(queue)`: how many of its stages have.
template <typename Finished>
size_t first_ready(const LanePlan& plan, const std::vector<size_t>& next, const Finished& finished) {
  size_t first = 0;
  uint32_t place = UINT32_MAX;
  for (size_t q = 1; q < next.size(); ++q) {
    const LanePlan::Queue& queue = plan.queues()[q];
    if (next[q] == queue.size() || queue[next[q]].place > place) continue;
    const LanePlan::Entry& entry = queue[next[q]];
    if (!std::all_of(entry.needs.begin(), entry.needs.end(),
                     [&](const LanePlan::Need& need) { return finished(need.queue) >= need.finished; }))
      continue;
    first = q;
    place = entry.place;
  }
  return first;
}

class Run {
 public:
  Run(const LanePlan& plan, std::span<const StageBody> bodies, std::span<StageTime> times,
      const std::function<void()>& on_failure, LaneProgress* progress)
      : plan_(plan),
        bodies_(bodies),
        times_(times),
        on_failure_(on_failure),
        progress_(progress),
        finished_(plan.queues().size()) {}

  void communicate() {
    guarded([&] {
      uint32_t done = 0;
      for (const LanePlan::Entry& entry : plan_.queues()[kComm]) {
        const int64_t ready = now_ns();
        for (const LanePlan::Need& need : entry.needs) wait_for(need.queue, need.finished);
        if (failed_.load(std::memory_order_relaxed)) break;
        run(Lane::kComm, entry, ready);
        publish(kComm, ++done);
      }
    });
    publish(kComm, kEverything);
  }

  void compute() {
    guarded([&] {
      std::vector<size_t> next(plan_.queues().size());
      size_t left = plan_.stage_count() - plan_.queues()[kComm].size();
      for (; left > 0; --left) {
        const int64_t ready = now_ns();
        size_t queue = 0;
        while (true) {
          // Loaded before the looking: what finishes meanwhile ends the wait at once.
          const uint32_t seen = finished_[kComm].count.load(std::memory_order_acquire);
          if (failed_.load(std::memory_order_relaxed)) return;
          queue = first_ready(plan_, next,
                              [&](uint32_t q) { return q == kComm ? seen : static_cast<uint32_t>(next[q]); });
          if (queue != 0) break;
          DUET_CHECK(seen != kEverything);
          // Sleeps in the kernel after a few looks; see the header on why it must.
          finished_[kComm].count.wait(seen, std::memory_order_acquire);
        }
        run(Lane::kCompute, plan_.queues()[queue][next[queue]], ready);
        publish(queue, static_cast<uint32_t>(++next[queue]));
      }
    });
    for (size_t q = 1; q < finished_.size(); ++q) publish(q, kEverything);
  }

  void wait_for_communication() { wait_for(kComm, kEverything); }

  /// Call it when both lanes have ended. The error leaves the run, which the comm lane may be the last to
  /// drop: it is the caller's thread that frees what it has caught.
  void rethrow() {
    std::unique_lock lock(mutex_);
    std::exception_ptr error = std::exchange(error_, nullptr);
    lock.unlock();
    if (error) std::rethrow_exception(std::move(error));
  }

 private:
  static constexpr size_t kComm = Program::kCommQueue;

  template <typename Work>
  void guarded(const Work& work) {
    try {
      work();
    } catch (...) {
      {
        std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
      failed_ = true;
      if (on_failure_) on_failure_();
    }
  }

  // `ready`: since when the lane has looked for something to run.
  void run(Lane lane, const LanePlan::Entry& entry, int64_t ready) {
    StageTime& time = times_[static_cast<size_t>(entry.stage)];
    time.wait_ns = entry.needs.empty() ? 0 : now_ns() - ready;
    run_stage(static_cast<size_t>(lane), entry.stage, bodies_[static_cast<size_t>(entry.stage)], time,
              progress_);
  }

  // Sleeps too.
  void wait_for(size_t queue, uint32_t count) {
    std::atomic<uint32_t>& finished = finished_[queue].count;
    for (uint32_t seen = finished.load(std::memory_order_acquire); seen < count;
         seen = finished.load(std::memory_order_acquire)) {
      finished.wait(seen, std::memory_order_acquire);
    }
  }
  void publish(size_t queue, uint32_t count) {
    finished_[queue].count.store(count, std::memory_order_release);
    finished_[queue].count.notify_all();
  }

  struct alignas(64) Counter {  // apart, so that one lane's progress does not evict the other's
    std::atomic<uint32_t> count{0};
  };
  const LanePlan& plan_;
  std::span<const StageBody> bodies_;
  std::span<StageTime> times_;
  const std::function<void()>& on_failure_;
  LaneProgress* progress_;
  std::vector<Counter> finished_;  // by queue
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace

void run_alone(const LanePlan& plan, std::span<const StageBody> bodies, std::span<StageTime> times,
               const std::function<void()>& on_failure, LaneProgress* progress) {
  DUET_CHECK(bodies.size() == plan.stage_count() && times.size() == plan.stage_count());
  std::vector<size_t> next(plan.queues().size());
  const auto finished = [&](uint32_t q) { return static_cast<uint32_t>(next[q]); };
  const LanePlan::Queue& collectives = plan.queues()[Program::kCommQueue];
  const auto collective_ready = [&] {
    if (next[0] == collectives.size()) return false;
    const auto& needs = collectives[next[0]].needs;
    return std::all_of(needs.begin(), needs.end(),
                       [&](const LanePlan::Need& need) { return finished(need.queue) >= need.finished; });
  };
  try {
    // What is communicated goes first: the other lane may wait for it. A sound program has no cycle, so some
    // lane is ready until all is done.
    for (size_t left = plan.stage_count(); left > 0; --left) {
      const size_t queue = collective_ready() ? Program::kCommQueue : first_ready(plan, next, finished);
      const Lane lane = queue == Program::kCommQueue ? Lane::kComm : Lane::kCompute;
      DUET_CHECK(lane == Lane::kCompute || collective_ready());
      const int stage = plan.queues()[queue][next[queue]++].stage;
      StageTime& time = times[static_cast<size_t>(stage)];
      time.wait_ns = 0;
      run_stage(static_cast<size_t>(lane), stage, bodies[static_cast<size_t>(stage)], time, progress);
    }
  } catch (...) {
    if (on_failure) on_failure();
    throw;
  }
}

int64_t run_program(const LanePlan& plan, std::span<const StageBody> bodies, CommLane& comm_lane,
                    std::span<StageTime> times, const std::function<void()>& on_failure,
                    LaneProgress* progress) {
  DUET_CHECK(bodies.size() == plan.stage_count() && times.size() == plan.stage_count());
  // On the heap and shared: the comm lane may still be inside publish() when the caller has seen it.
  auto run = std::make_shared<Run>(plan, bodies, times, on_failure, progress);
  comm_lane.post([run] { run->communicate(); });
  run->compute();
  const int64_t ready = now_ns();
  run->wait_for_communication();
  const int64_t waited = now_ns() - ready;
  run->rethrow();
  return waited;
}

}  // namespace duet
