// A program in virtual time: what an executor with the same two in-order lanes would take if every
// stage took what `cost_ns` says. Deterministic, so every rank gets the same answer.
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

/// `cost_ns`: one entry per stage. The program must be sound (validator.h).
SimulatedRun simulate(const Program& program, std::span<const double> cost_ns);

}  // namespace duet
