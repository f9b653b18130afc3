#include "exec/cpu_executor.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <utility>

#include "base/clock.h"
#include "base/error.h"

namespace duet {

LanePlan::LanePlan(const Program& program) {
  std::vector<uint32_t> position(program.stages.size());
  for (const auto& lane : program.order) {
    for (size_t i = 0; i < lane.size(); ++i)
      position[static_cast<size_t>(lane[i])] = static_cast<uint32_t>(i);
  }
  for (size_t lane = 0; lane < kLanes; ++lane) {
    for (int s : program.order[lane]) {
      Entry entry{s, 0};
      // The other lane is in order too: the latest of several waits covers the rest.
      for (int w : program.waits[static_cast<size_t>(s)]) {
        entry.after = std::max(entry.after, position[static_cast<size_t>(w)] + 1);
      }
      lanes_[lane].push_back(entry);
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

class Run {
 public:
  Run(const LanePlan& plan, std::span<const StageBody> bodies, std::span<StageTime> times,
      const std::function<void()>& on_failure, LaneProgress* progress)
      : plan_(plan), bodies_(bodies), times_(times), on_failure_(on_failure), progress_(progress) {}

  void lane(Lane lane) {
    const size_t own = static_cast<size_t>(lane), other = 1 - own;
    try {
      uint32_t done = 0;
      for (const LanePlan::Entry& entry : plan_.lane(lane)) {
        StageTime& time = times_[static_cast<size_t>(entry.stage)];
        const int64_t ready = now_ns();
        wait_for(other, entry.after);
        if (failed_.load(std::memory_order_relaxed)) break;
        time.wait_ns = entry.after > 0 ? now_ns() - ready : 0;
        run_stage(own, entry.stage, bodies_[static_cast<size_t>(entry.stage)], time, progress_);
        publish(own, ++done);
      }
    } catch (...) {
      {
        std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
      failed_ = true;
      if (on_failure_) on_failure_();
    }
    publish(own, kEverything);
  }

  void wait_for_end_of(Lane lane) { wait_for(static_cast<size_t>(lane), kEverything); }

  /// Call it when both lanes have ended. The error leaves the run, which the comm lane may be the last to
  /// drop: it is the caller's thread that frees what it has caught.
  void rethrow() {
    std::unique_lock lock(mutex_);
    std::exception_ptr error = std::exchange(error_, nullptr);
    lock.unlock();
    if (error) std::rethrow_exception(std::move(error));
  }

 private:
  // atomic::wait sleeps in the kernel after a few looks; see the header on why it must.
  void wait_for(size_t lane, uint32_t count) {
    std::atomic<uint32_t>& finished = finished_[lane].count;
    for (uint32_t seen = finished.load(std::memory_order_acquire); seen < count;
         seen = finished.load(std::memory_order_acquire)) {
      finished.wait(seen, std::memory_order_acquire);
    }
  }
  void publish(size_t lane, uint32_t count) {
    finished_[lane].count.store(count, std::memory_order_release);
    finished_[lane].count.notify_all();
  }

  struct alignas(64) Counter {  // apart, so that one lane's progress does not evict the other's
    std::atomic<uint32_t> count{0};
  };
  const LanePlan& plan_;
  std::span<const StageBody> bodies_;
  std::span<StageTime> times_;
  const std::function<void()>& on_failure_;
  LaneProgress* progress_;
  std::array<Counter, kLanes> finished_;
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace

void run_alone(const LanePlan& plan, std::span<const StageBody> bodies, std::span<StageTime> times,
               const std::function<void()>& on_failure, LaneProgress* progress) {
  DUET_CHECK(bodies.size() == plan.stage_count() && times.size() == plan.stage_count());
  std::array<size_t, kLanes> done{};
  const auto ready = [&](size_t lane) {
    const auto& entries = plan.lane(static_cast<Lane>(lane));
    return done[lane] < entries.size() && entries[done[lane]].after <= done[1 - lane];
  };
  try {
    // What is communicated goes first: the other lane may wait for it. A sound program has no cycle, so some
    // lane is ready until all is done.
    constexpr size_t kFirst = static_cast<size_t>(Lane::kComm);
    while (done[0] + done[1] < plan.stage_count()) {
      const size_t lane = ready(kFirst) ? kFirst : 1 - kFirst;
      DUET_CHECK(ready(lane));
      const int stage = plan.lane(static_cast<Lane>(lane))[done[lane]++].stage;
      StageTime& time = times[static_cast<size_t>(stage)];
      time.wait_ns = 0;
      run_stage(lane, stage, bodies[static_cast<size_t>(stage)], time, progress);
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
  comm_lane.post([run] { run->lane(Lane::kComm); });
  run->lane(Lane::kCompute);
  const int64_t ready = now_ns();
  run->wait_for_end_of(Lane::kComm);
  const int64_t waited = now_ns() - ready;
  run->rethrow();
  return waited;
}

}  // namespace duet
