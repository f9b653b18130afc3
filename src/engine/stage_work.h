// What the stages of a step work on: rows, and for attention the keys they visit. The features that the cost
// table (cost_table.h) knows costs by. Pure functions of the batch, so every rank gets the same.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "model/batch.h"
#include "overlap/stage.h"

namespace duet {

/// The rows of its micro-batch that a stage works on: all, past the last layer's KV write those whose logits
/// are wanted, or of those the ones whose logits travel or whose likeliest token does.
enum RowSetKind : size_t { kAllRows, kWantedRows, kWholeRows, kBestRows, kRowSets };

/// The kinds of a recording's stages, in order of first appearance: the same for any number of micro-batches.
/// A stage's class is its kind and its RowSetKind.
class StageKinds {
 public:
  explicit StageKinds(const std::vector<Stage>& stages);

  struct Kind {
    std::string name;
    Lane lane = Lane::kCompute;
    bool attention = false;  // its cost follows the keys visited, not the rows alone
  };
  const std::vector<Kind>& kinds() const { return kinds_; }
  size_t classes() const { return kRowSets * kinds_.size(); }
  /// kRowSets · kind + RowSetKind.
  int class_of(size_t stage) const { return class_[stage]; }

 private:
  std::vector<Kind> kinds_;
  std::vector<int> class_;
};

/// Rows in the expanded form, keys expanded for them and visited by them; rows and keys visited in the
/// absorbed form.
inline constexpr size_t kAttentionFeatures = 5;
using AttentionWork = std::array<double, kAttentionFeatures>;

/// One micro-batch, by RowSetKind. (No attention works on the last two.)
struct MicroBatchWork {
  std::array<double, kRowSets> rows{};
  std::array<AttentionWork, kRowSets> attention{};
};
std::vector<MicroBatchWork> work_of(const StepBatch& batch);

/// Cost of every stage from costs by micro-batch and class, as StepBatch::stage_ns holds them.
std::vector<double> stage_costs(const std::vector<Stage>& stages, const StageKinds& kinds,
                                const std::vector<float>& stage_ns);

}  // namespace duet
