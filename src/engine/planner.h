// Planner: decides, once per step and on rank 0 alone, whether the step is split, into how many
// micro-batches, where, and from which costs the order of its stages is found. What it decides travels with
// the step (StepBatch), so every rank derives the same program. Predicted times of the candidate programs, in
// virtual time on measured costs, decide; the costs are learnt from the steps that run.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/cost_table.h"
#include "load/config.h"
#include "model/batch.h"
#include "overlap/recorder.h"
#include "overlap/splitter.h"
#include "sim/simulator.h"

namespace duet {

/// kOn: every step from the thresholds on is split. kAuto: where splitting is predicted to be faster.
enum class DboMode : uint8_t { kOff, kOn, kAuto };

struct SplitPolicy {
  DboMode dbo = DboMode::kOff;
  int micro_batches = 0;       // of a split step; 0: as many as are predicted to be fastest
  SplitThresholds thresholds;  // kOn only
  double imbalance = 0.1;
  int64_t split_at = 0;  // > 0: rows of the first micro-batch, everything else ignored
};

/// More than these never pay (docs/overlap.md), and buffers must be counted.
inline constexpr int kMostMicroBatches = 6;

/// What a step could run as.
struct PlanCandidate {
  int micro_batches = 1;  // 1: whole, nothing overlapped
  double predicted_ns = 0;
  double compute_ns = 0, comm_ns = 0;  // sums over the lanes' stages
};

struct Plan {
  int micro_batches = 1;
  double predicted_ns = 0;  // 0: nothing was known
  double bubbles_ns = 0;    // of that, in virtual time: neither computing nor the longer of the lanes
  std::vector<PlanCandidate> candidates;
  std::string reason;  // "3 micro-batches: predicted 2310.2 ms, whole 4291.0 ms"
  std::string kind;    // the reason without figures: "off", "below the threshold", "whole is faster", …
};

class Planner {
 public:
  /// `recording(m)`: the stages of m micro-batches. `ranks` 1: nothing is ever split without --split-at.
  Planner(const ModelConfig& config, int ranks, int max_micro_batches,
          std::function<const Recording&(int)> recording);

  /// Sets the batch's borders, overlap, stage_ns, stolen and observe.
  Plan plan(StepBatch& batch, const SplitPolicy& policy);
  /// Learns from a step that ran with `observe`.
  void observe(const StepBatch& batch, const Program& program, const ObservedStep& step);

  const CostTable& costs() const { return costs_; }
  const StageKinds& kinds() const { return *kinds_; }
  bool load_costs(const std::string& text) { return costs_.load(text, *kinds_); }
  /// Forgets what was measured: another link, another machine.
  void reset() { costs_ = {}; }
  /// Predicted time of a batch as it is cut, ns; 0 when nothing was measured.
  double predict(const StepBatch& batch, CommLanes lanes = CommLanes::kOne) const;

 private:
  struct Choice {
    Plan plan;
    SplitOptions split;
    std::vector<float> stage_ns;
    float stolen = 0;
  };
  std::vector<SpanShape> shapes(const StepBatch& batch) const;
  Choice choose(const StepBatch& batch, const SplitPolicy& policy, bool whole_too) const;
  Choice consider(StepBatch& batch, const std::vector<SpanShape>& spans, const SplitOptions& split) const;

  int ranks_, max_micro_batches_;
  std::function<const Recording&(int)> recording_;
  std::unique_ptr<StageKinds> kinds_;
  RowCost expanded_cost_, absorbed_cost_;  // multiply-adds: until costs are measured
  CostTable costs_;
  std::map<std::vector<int64_t>, Choice> choices_;  // by the step's shape, coarsely
  int64_t choices_version_ = 0;
  int64_t steps_ = 0;
  std::set<int> told_;  // numbers of micro-batches that the log has told of
};

/// Multiply-adds of one token: `row` for everything but attention's scores and sums, `key` for each
/// position it attends to (the absorbed form works on the latent, the expanded one on heads).
RowCost row_cost(const ModelConfig& config, AttentionForm form);

/// Borders under a policy that needs no costs: --split-at. {0, rows} where it does not split.
std::vector<int64_t> borders_at(int64_t rows, int64_t split_at, int micro_batches);

/// A prompt token, or more than one row of a sequence.
bool has_prefill(const StepBatch& batch);

}  // namespace duet
