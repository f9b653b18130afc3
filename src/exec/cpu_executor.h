// Runs a program on CPU lanes: the compute lane is the calling thread, the comm lane a CommLane.
// Neither spins while it waits: on a machine with one core per rank the two lanes share that core.
// Knows nothing of models or collectives; bodies do the work.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "exec/comm_lane.h"
#include "overlap/program.h"
#include "overlap/recorder.h"

namespace duet {

/// When a stage ran, and how long its lane had waited for the other one before (steady clock). `cpu_ns`: CPU
/// time of the lane's thread meanwhile; of a compute stage it falls short of the rest where the comm lane
/// took the core.
struct StageTime {
  int64_t start_ns = 0;
  int64_t end_ns = 0;
  int64_t wait_ns = 0;
  int64_t cpu_ns = 0;
};

/// A program in the form the lanes read: per queue (Program::queue_of) the stages, and how many stages of
/// which other queues must have finished first.
class LanePlan {
 public:
  explicit LanePlan(const Program& program);
  LanePlan(LanePlan&&) = default;
  LanePlan(const LanePlan&) = delete;  // entries look into needs_

  struct Need {
    uint32_t queue = 0;
    uint32_t finished = 0;
  };
  struct Entry {
    int stage = 0;
    uint32_t place = 0;  // in the order of its lane
    std::span<const Need> needs;
  };
  using Queue = std::vector<Entry>;
  /// Queue 0 is the comm lane's, the others are the compute lane's.
  const std::vector<Queue>& queues() const { return queues_; }
  size_t stage_count() const { return stage_count_; }

 private:
  std::vector<Need> needs_;  // of all entries
  std::vector<Queue> queues_;
  size_t stage_count_ = 0;
};

/// Where the lanes are right now, for whoever watches from another thread.
struct LaneProgress {
  std::array<std::atomic<int>, kLanes> stage{-1, -1};  // that the lane is inside of; -1: none
  std::atomic<uint64_t> stages_done{0};                // of all programs so far, both lanes
};

/// Runs all bodies and returns when both lanes are done: the comm lane in its order, the compute lane in its
/// order too or, where the program runs ahead, always the first stage in it that waits for nothing. `times`
/// has one entry per stage. When a body throws, `on_failure` is called at once, on that lane (it must wake
/// whoever the other lane is blocked on), the remaining stages are skipped, and the first error is rethrown.
/// Returns the time the compute lane waited at the end for the comm lane, in ns.
int64_t run_program(const LanePlan& plan, std::span<const StageBody> bodies, CommLane& comm_lane,
                    std::span<StageTime> times, const std::function<void()>& on_failure,
                    LaneProgress* progress = nullptr);

/// The same on the calling thread alone, for a rank without peers: its collectives wait for nobody, and
/// handing each to another thread would cost more than it does.
void run_alone(const LanePlan& plan, std::span<const StageBody> bodies, std::span<StageTime> times,
               const std::function<void()>& on_failure, LaneProgress* progress = nullptr);

}  // namespace duet
