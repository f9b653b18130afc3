#include "sim/search.h"

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "base/error.h"
#include "sim/simulator.h"

namespace duet {

namespace {

// What decides between stages that could start at the same moment.
enum class Tie { kLowerSegment, kLowerMicroBatch, kShorterWayToCollective };

// List scheduling in virtual time. A stage becomes a candidate when all it depends on is placed; per
// micro-batch and lane only the first unplaced stage is looked at, so a lane never reorders one
// micro-batch against itself.
class Greedy {
 public:
  Greedy(const Recording& recording, std::span<const double> cost, const std::vector<std::vector<int>>& needs,
         const std::vector<int>& segment)
      : r_(recording),
        cost_(cost),
        needs_(needs),
        segment_(segment),
        queue_(static_cast<size_t>(r_.micro_batches)) {
    for (size_t s = 0; s < r_.stages.size(); ++s) {
      const Stage& stage = r_.stages[s];
      queue_[static_cast<size_t>(stage.micro_batch)][static_cast<size_t>(stage.lane)].push_back(
          static_cast<int>(s));
    }
    // Computing still to do before the micro-batch's next collective can start.
    way_.assign(r_.stages.size(), 0);
    double way = 0;
    for (size_t s = r_.stages.size(); s-- > 0;) {
      if (s + 1 < r_.stages.size() && r_.stages[s + 1].micro_batch != r_.stages[s].micro_batch) way = 0;
      way = r_.stages[s].lane == Lane::kComm ? 0 : way + cost_[s];
      way_[s] = way;
    }
  }

  std::vector<int> order(Tie tie) {
    std::vector<double> end(r_.stages.size(), -1);
    std::array<double, kLanes> free{};
    std::vector<std::array<size_t, kLanes>> next(queue_.size());
    std::vector<int> sequence;
    sequence.reserve(r_.stages.size());
    while (sequence.size() < r_.stages.size()) {
      int best = -1;
      double best_start = std::numeric_limits<double>::infinity();
      for (size_t m = 0; m < queue_.size(); ++m) {
        for (size_t lane = 0; lane < kLanes; ++lane) {
          if (next[m][lane] == queue_[m][lane].size()) continue;
          const int s = queue_[m][lane][next[m][lane]];
          double start = free[lane];
          bool placed = true;
          for (int d : needs_[static_cast<size_t>(s)]) {
            placed = placed && end[static_cast<size_t>(d)] >= 0;
            start = std::max(start, end[static_cast<size_t>(d)]);
          }
          if (!placed) continue;
          if (start < best_start || (start == best_start && wins(tie, s, best))) {
            best = s;
            best_start = start;
          }
        }
      }
      DUET_CHECK(best >= 0);
      const size_t s = static_cast<size_t>(best), lane = static_cast<size_t>(r_.stages[s].lane);
      free[lane] = end[s] = best_start + cost_[s];
      ++next[static_cast<size_t>(r_.stages[s].micro_batch)][lane];
      sequence.push_back(best);
    }
    return sequence;
  }

 private:
  bool wins(Tie tie, int a, int b) const {
    const size_t i = static_cast<size_t>(a), j = static_cast<size_t>(b);
    const int mine = r_.stages[i].micro_batch, other = r_.stages[j].micro_batch;
    switch (tie) {
      case Tie::kLowerSegment: return segment_[i] != segment_[j] ? segment_[i] < segment_[j] : mine < other;
      case Tie::kLowerMicroBatch: return mine < other;
      case Tie::kShorterWayToCollective: return way_[i] != way_[j] ? way_[i] < way_[j] : mine < other;
    }
    return false;
  }

  const Recording& r_;
  std::span<const double> cost_;
  const std::vector<std::vector<int>>& needs_;
  const std::vector<int>& segment_;
  std::vector<std::array<std::vector<int>, kLanes>> queue_;  // by micro-batch
  std::vector<double> way_;
};

}  // namespace

Program search_program(const Recording& recording, std::span<const double> cost_ns, double stolen) {
  DUET_CHECK(cost_ns.size() == recording.stages.size());
  const auto needs = derive_dependencies(recording.stages, recording.buffers.size());
  Program best;
  double best_ns = std::numeric_limits<double>::infinity();
  const auto consider = [&](const std::vector<int>& sequence) {
    Program program = program_in_order(recording, sequence, needs);
    const double ns = simulate(program, cost_ns, stolen).makespan_ns;
    if (ns < best_ns) {
      best_ns = ns;
      best = std::move(program);
    }
  };
  // The robust order comes first: others must be shorter to replace it, not merely as short.
  consider(segments_in_turns(recording));
  const std::vector<int> segment = segments(recording);
  Greedy greedy(recording, cost_ns, needs, segment);
  for (Tie tie : {Tie::kLowerSegment, Tie::kLowerMicroBatch, Tie::kShorterWayToCollective})
    consider(greedy.order(tie));
  for (int half = 1; half <= 16; ++half) consider(index_plus_skew(recording, 0.5 * half));
  return best;
}

}  // namespace duet
