// A program in virtual time: what an executor with the same two lanes would take if every stage took what
// `cost_ns` says. Deterministic, so every rank gets the same answer.
#pragma once

#include <span>
#include <vector>

#include "overlap/program.h"

namespace duet {

struct SimulatedRun {
  double makespan_ns = 0;
  double exposed_ns = 0;         // the compute lane waited for the comm lane, the end included
  std::vector<double> start_ns;  // by stage
};

/// kPerMicroBatch: each micro-batch has a comm lane of its own, as engines with a communicator per
/// micro-batch do; collectives in progress at the same time share the link evenly. For comparison: no
/// executor runs so.
enum class CommLanes : uint8_t { kOne, kPerMicroBatch };

/// `cost_ns`: one entry per stage. `stolen`: the part of the core that a collective in progress takes from
/// the compute lane (copies, sums and the network stack run on it), in [0, 1): while both lanes are busy,
/// computing goes at 1 − stolen of its speed. The program must be sound (validator.h).
SimulatedRun simulate(const Program& program, std::span<const double> cost_ns, double stolen = 0,
                      CommLanes lanes = CommLanes::kOne);

}  // namespace duet
