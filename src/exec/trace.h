// Traces in Chrome's JSON (open them in Perfetto or chrome://tracing): a process per rank, a track
// per lane, a slice per stage, a flow arrow per event between the lanes. Written at the end of a
// run from what the executor measured.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "exec/cpu_executor.h"
#include "overlap/program.h"

namespace duet {

/// One step of one rank.
struct TracedStep {
  int64_t step = 0;
  std::shared_ptr<const Program> program;
  std::vector<StageTime> times;  // by stage
  std::vector<int64_t> rows;     // rows of each micro-batch
  std::string decision;          // why it was cut so; where known (rank 0), an instant event at its start
  // (row, expert) pairs of this rank's experts, by micro-batch and layer: how evenly the router spread them.
  std::vector<std::vector<int64_t>> expert_rows;
};

/// The events of one rank, comma-separated, without brackets: ranks' texts are joined by
/// write_chrome_trace. Times are µs since `origin_ns`.
std::string chrome_events(int rank, const std::vector<TracedStep>& steps, int64_t origin_ns);

/// Writes {"traceEvents": […], "duet": {…}} to a temporary beside `path`, then renames it. `facts`
/// is a JSON object's inside ("\"ranks\": 2, …"). Throws Error(kInvalidArgument) when it can't.
void write_chrome_trace(const std::string& path, const std::vector<std::string>& rank_events,
                        const std::string& facts);

}  // namespace duet
