// From the scheduler's pieces to the StepBatch that all ranks compute: rows, spans, block tables and
// rows whose logits are wanted. Called once per step; where the step is cut is the planner's business.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/request.h"
#include "model/batch.h"

namespace duet {

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

/// Decodes first, then prefills, each in the order given. The batch is whole: the planner cuts it.
Step build_step(const std::vector<ScheduledPiece>& pieces);

}  // namespace duet
