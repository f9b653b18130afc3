// StepLog: the last steps of rank 0, lane by lane, and sums over all of them. Fed on the engine's thread,
// read by /debug/steps and /metrics. Thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/rank_group.h"
#include "engine/step_builder.h"
#include "exec/cpu_executor.h"

namespace duet {

struct StepSums {
  std::array<double, kLanes> busy_seconds{};  // inside stages of the compute and the comm lane
  std::map<std::string, int64_t> decisions;   // steps by what the planner decided of them
};

class StepLog {
 public:
  void note(const Step& step, const StepResult& result);
  StepSums sums() const;
  /// {"steps": [{…, "lanes": {"compute": [["L0.b0 attn_core", start µs, end µs], …], "comm": […]}}, …]},
  /// oldest first; times count from the step's first stage.
  std::string json() const;

 private:
  struct Entry {
    int64_t number = 0, prompt_tokens = 0, tokens = 0;
    int64_t step_ns = 0, exposed_ns = 0, comm_ns = 0;
    double predicted_ns = 0;
    int micro_batches = 1;
    bool overlapped = false;
    std::string decision;
    std::shared_ptr<const Program> program;
    std::vector<StageTime> times;
  };
  static constexpr size_t kKept = 16;

  mutable std::mutex mutex_;
  std::deque<Entry> steps_;
  StepSums sums_;
  int64_t count_ = 0;
};

}  // namespace duet
