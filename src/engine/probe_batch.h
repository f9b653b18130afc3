// Steps for measuring: made-up token ids in the shape of a prefill, a decode or a mixed step, on whatever the
// KV cache holds. Run by calibration at start-up and by `duet bench overlap`, never beside requests.
#pragma once

#include <cstdint>

#include "model/batch.h"

namespace duet {

enum class ProbePhase : uint8_t { kPrefill, kDecode, kMixed };
/// "prefill", "decode", "mixed".
const char* to_string(ProbePhase phase);

struct ProbeShape {
  ProbePhase phase = ProbePhase::kPrefill;
  int64_t tokens = 0;     // rows of the step; of a mixed step those of the prompts
  int64_t sequences = 0;  // that the prompt rows are shared by, evenly
  int64_t decodes = 0;    // rows of decoding in a mixed step
  int64_t context = 0;    // tokens before each sequence's first row

  int64_t rows() const { return tokens + (phase == ProbePhase::kMixed ? decodes : 0); }
  /// KV blocks that the step's sequences take.
  int64_t blocks(int block_size) const;
};

/// The step, not yet cut into micro-batches. Of one row per sequence the likeliest next token is wanted, or
/// with `whole_logits` the logits.
StepBatch probe_batch(const ProbeShape& shape, int block_size, int64_t vocab_size, bool whole_logits = false);

}  // namespace duet
