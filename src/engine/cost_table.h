// What stages cost, learnt from steps that ran: by kind and rows, attention by the keys visited. Lives on
// rank 0; what it says of a step travels with the step (StepBatch::stage_ns), so that all ranks derive one
// program from the same figures. Predicts steps that never ran: other sizes, other cuts, overlapped or not.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/stage_work.h"
#include "overlap/program.h"

namespace duet {

/// A value by number of rows: measured at some, read between and beyond them.
class CostCurve {
 public:
  struct Point {
    double rows = 0;
    double value = 0;
    double weight = 0;               // samples, up to a limit: later ones then count an eighth
    std::vector<double> first = {};  // samples of add_steady()
  };
  void add(double rows, double value);
  /// The same for a value that is a difference of two steps: of the first few samples the median counts (the
  /// lower one), since whatever disturbs one of the steps moves it by more than all of what is looked for.
  void add_steady(double rows, double value);
  bool empty() const { return points_.empty(); }
  /// Straight lines through the points; beyond the last one as steep as over the last factor of four.
  double line(double rows) const;
  /// Whether steps of about so many rows were measured.
  bool knows(double rows) const;
  /// The same, but level beyond the ends (for ratios); `otherwise` when nothing was measured.
  double level(double rows, double otherwise) const;
  const std::vector<Point>& points() const { return points_; }
  void set_points(std::vector<Point> points) { points_ = std::move(points); }

 private:
  Point& point_at(double rows);

  std::vector<Point> points_;  // ascending, at most one for each half octave of rows
};

/// ns = Σ coefficient · feature, all at least 0, fitted to relative errors with newer samples counting more.
class AttentionFit {
 public:
  void add(const AttentionWork& work, double ns);
  double predict(const AttentionWork& work) const;
  const AttentionWork& coefficients() const { return coefficients_; }
  void set_coefficients(const AttentionWork& c);

 private:
  void solve();
  std::array<AttentionWork, kAttentionFeatures> squares_{};
  AttentionWork products_{};
  AttentionWork coefficients_{};
};

/// Times of a step over all ranks: computing by the slowest, communication by the fastest (a rank's lateness
/// is not network).
struct ObservedStep {
  std::vector<float> busy_ns;  // by stage
  double step_ns = 0;
  double exposed_ns = 0;
};

class CostTable {
 public:
  /// Learns from a step.
  void observe(const StageKinds& kinds, const std::vector<MicroBatchWork>& work, const Program& program,
               const ObservedStep& step);
  /// Learns by how much a step took longer than simulate() says on this table's costs.
  void observe_drag(double rows, bool overlapped, double ratio) { drag_[overlapped].add(rows, ratio); }
  /// A step took much more or less than had been predicted: decisions must be made again.
  void expire() { ++version_; }

  bool empty() const { return curves_.empty(); }
  /// Costs by micro-batch and class. In an overlapped program collectives are longer than alone, and
  /// computing is shorter: a core that waits out every collective begins each time with cold caches and a low
  /// clock.
  std::vector<float> predict(const StageKinds& kinds, const std::vector<MicroBatchWork>& work,
                             bool overlapped) const;
  /// The part of the core that collectives take from the compute lane of an overlapped step of so many rows.
  double stolen(double rows) const;
  /// What a simulated time is to be multiplied by: ranks that wait for each other, wake-ups.
  double drag(double rows, bool overlapped) const { return drag_[overlapped].level(rows, 1.0); }
  /// Goes up when costs have moved so much that decisions made before may be wrong.
  int64_t version() const { return version_; }
  const AttentionFit& attention() const { return attention_; }

  /// As text (JSON), for the cache between runs.
  std::string dump(const StageKinds& kinds) const;
  /// False, and no change, when the text is not a table of these kinds.
  bool load(const std::string& text, const StageKinds& kinds);

 private:
  void observe_alone(const StageKinds& kinds, const std::vector<MicroBatchWork>& work, const Program& program,
                     const ObservedStep& step);
  void observe_overlapped(const StageKinds& kinds, const std::vector<MicroBatchWork>& work,
                          const Program& program, const ObservedStep& step);

  double warm(double rows) const;
  void follow_pace(double measured, double predicted);

  std::vector<CostCurve> curves_;  // by kind
  AttentionFit attention_;
  CostCurve stolen_;
  // What a collective takes longer than alone in an overlapped step, ns, by rows of a part: it shares the
  // core, and finds a link that has not rested. A time, not a ratio: long messages are hardly longer than
  // alone.
  CostCurve delay_;
  CostCurve warmth_;  // by rows of a part: what it saves by never waiting, as so many rows' computing
  std::array<CostCurve, 2> drag_;
  // How fast the machine computes now, as a factor on all computing: clocks and neighbours come and go within
  // seconds, and what is learnt from steps before and after must still be comparable. Not kept between runs.
  double pace_ = 1.0;
  int since_alone_ = kLongAgo;  // overlapped steps since one that was not

  static constexpr int kLongAgo = 1000;
  int64_t version_ = 0;
};

}  // namespace duet
