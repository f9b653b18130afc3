// Activations of one rank: one allocation each for all rows of a step, of which a micro-batch uses
// its own rows. So cutting a step takes no memory, and micro-batches can never meet in a buffer.
#pragma once

#include <vector>

#include "kernels/ops.h"
#include "model/batch.h"
#include "model/shapes.h"

namespace duet {

/// Sizes in elements; a struct so that the memory plan and the allocation can't disagree.
struct BufferSizes {
  BufferSizes(const DecoderShapes& shapes, const BatchLimits& limits);

  int64_t rows;       // of a step
  int64_t wide_rows;  // of `send` and `back`: every owned row once per destination rank
  int64_t head_rows;  // rows whose logits are wanted
  int64_t hidden, q, heads, top_k, vocab_local, vocab, ranks;
  int64_t group_borders;  // per micro-batch: local experts + 1
  int64_t micro_batches;
  bool all_to_all, root;
  int64_t bytes() const;
};

/// The views of one micro-batch. `own` views exist where rows have owners (all-to-all path).
struct DecoderRows {
  Rows x;      // residual stream, float32; all-to-all: only owned rows are kept up to date
  Rows h;      // normed input of the current block
  Rows q;      // [rows, attention.q]
  Rows heads;  // [rows, attention.heads]
  Rows part;   // partial sum on its way to a reduction; all-to-all: shared experts' output, owned rows
  int32_t* expert_ids = nullptr;  // [rows, top_k]
  float* expert_weights = nullptr;
  int32_t* group_offsets = nullptr;
  int32_t* group_rows = nullptr;  // [rows · top_k]
  float* group_weights = nullptr;
  // all-to-all path
  Rows send;      // owned rows, once per destination rank, grouped by rank
  Rows received;  // rows whose experts live here
  Rows result;    // their weighted sums
  Rows back;      // results for owned rows, grouped by the rank they come from
  // Per sent or received row: top_k expert ids, then top_k weights.
  std::byte* send_choice = nullptr;
  std::byte* received_choice = nullptr;
  Rows head_in;    // [logits rows, hidden]
  Rows head_part;  // [logits rows, vocab_rows]
  Rows logits;     // [logits rows, vocab]; rank 0
  // Rows of which only the likeliest token is wanted. A pair: a logit, and the token's id as a float (exact
  // up to 2^24).
  Rows best_part;             // [best rows, 2]: of this rank's part of the vocabulary
  Rows best_all;              // [best rows, 2 · ranks]; rank 0
  BestToken* best = nullptr;  // [logits rows]; rank 0
};

class DecoderBuffers {
 public:
  DecoderBuffers(const DecoderShapes& shapes, const BatchLimits& limits);
  DecoderRows rows_of(const MicroBatch& micro_batch, int index) const;
  const float* logits() const { return logits_; }
  const BestToken* best() const { return best_; }

 private:
  BufferSizes n_;
  int ranks_;
  mutable Arena arena_;
  float *x_, *h_, *q_, *heads_, *part_, *expert_weights_, *group_weights_;
  float *send_ = nullptr, *received_ = nullptr, *result_ = nullptr, *back_ = nullptr;
  float *head_in_, *head_part_, *logits_ = nullptr;
  float *best_part_, *best_all_ = nullptr;
  BestToken* best_ = nullptr;
  int32_t *expert_ids_, *group_offsets_, *group_rows_;
  std::byte *send_choice_ = nullptr, *received_choice_ = nullptr;
};

/// Bytes of one row's choice as it travels with a dispatch.
inline int64_t choice_bytes(int64_t top_k) {
  return top_k * 8;
}

}  // namespace duet
