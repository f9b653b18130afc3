#include "sim/simulator.h"

#include <algorithm>
#include <array>

#include "base/error.h"

namespace duet {

SimulatedRun simulate(const Program& program, std::span<const double> cost_ns) {
  DUET_CHECK(cost_ns.size() == program.stages.size());
  SimulatedRun run;
  run.start_ns.assign(program.stages.size(), 0);
  std::vector<double> end(program.stages.size(), -1);
  std::array<size_t, kLanes> next{};
  std::array<double, kLanes> free{};
  for (bool moved = true; moved;) {
    moved = false;
    for (size_t lane = 0; lane < kLanes; ++lane) {
      for (; next[lane] < program.order[lane].size(); ++next[lane], moved = true) {
        const size_t s = static_cast<size_t>(program.order[lane][next[lane]]);
        double ready = 0;
        bool known = true;
        for (int w : program.waits[s]) {
          known = known && end[static_cast<size_t>(w)] >= 0;
          ready = std::max(ready, end[static_cast<size_t>(w)]);
        }
        if (!known) break;
        run.start_ns[s] = std::max(free[lane], ready);
        if (lane == static_cast<size_t>(Lane::kCompute)) run.exposed_ns += run.start_ns[s] - free[lane];
        free[lane] = end[s] = run.start_ns[s] + cost_ns[s];
      }
    }
  }
  run.makespan_ns = std::max(free[0], free[1]);
  run.exposed_ns += run.makespan_ns - free[static_cast<size_t>(Lane::kCompute)];
  return run;
}

}  // namespace duet
