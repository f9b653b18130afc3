// From the scheduler's pieces to the StepBatch that all ranks compute: rows, spans, block tables,
// rows whose logits are wanted, and where the step is cut into micro-batches. Rank 0 decides here,
// once, and the decision travels with the step. Called by Llm once per step.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/request.h"
#include "load/config.h"
#include "model/batch.h"
#include "overlap/splitter.h"

namespace duet {

struct SplitPolicy {
  bool dbo = false;
  int micro_batches = 2;
  SplitThresholds thresholds;
  double imbalance = 0.1;
  int64_t split_at = 0;  // > 0: rows of the first micro-batch, thresholds ignored
};

/// Where the logits of a step go: entry i is row i of StepResult::logits.
struct WantedLogits {
  Sequence* sequence = nullptr;
  int64_t token = 0;  // index of the token whose successor the logits predict
};

struct Step {
  StepBatch batch;
  std::vector<WantedLogits> wanted;
  bool has_prefill = false;  // a prompt token, or more than one token of a sequence
  int64_t prompt_rows = 0;
  // Without what is computed again after a preemption:
  int64_t new_prompt_tokens = 0;
  int64_t new_generated_tokens = 0;
};

/// Decodes first, then prefills, each in the order given. `decode_cost` and `prefill_cost` weigh rows
/// for the splitter (row_cost).
class StepBuilder {
 public:
  StepBuilder(const DeepseekConfig& config, const SplitPolicy& policy);

  Step build(const std::vector<ScheduledPiece>& pieces) const;
  void set_policy(const SplitPolicy& policy) { policy_ = policy; }
  const SplitPolicy& policy() const { return policy_; }

 private:
  SplitPolicy policy_;
  RowCost prefill_cost_;
  RowCost decode_cost_;
};

/// Multiply-adds of one token: `row` for everything but attention's scores and sums, `key` for each
/// position it attends to (the absorbed form works on the latent, the expanded one on heads).
RowCost row_cost(const DeepseekConfig& config, AttentionForm form);

/// Borders of a step's micro-batches under a policy; {0, rows} when it is not split.
std::vector<int64_t> micro_batch_borders(const std::vector<SequenceSpan>& spans, bool has_prefill,
                                         const RowCost& cost, const SplitPolicy& policy);

}  // namespace duet
