// StepBatch: what one step computes, decided by rank 0 and equal on every rank. It travels as bytes
// at the start of a step, so ranks never decide on facts of their own. Row = one token to compute.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/ops.h"

namespace duet {

/// Consecutive rows of one sequence with one attention form, at consecutive positions. A sequence
/// that has prompt and generated tokens in one step (recomputed after a preemption) has two spans.
struct SequenceSpan {
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t start_position = 0;
  AttentionForm form = AttentionForm::kExpanded;
  int64_t block_table = 0;  // index into StepBatch::block_tables
  int64_t blocks = 0;       // enough for start_position + rows tokens

  bool operator==(const SequenceSpan&) const = default;
};

struct StepBatch {
  std::vector<int32_t> token_ids;     // one per row
  std::vector<SequenceSpan> spans;    // tile the rows, ascending
  std::vector<int32_t> block_tables;  // physical blocks of the KV cache, span by span
  std::vector<int32_t> logits_rows;   // rows whose logits are wanted, ascending
  // Of those, ascending: only the likeliest token is wanted, not the row of logits. Greedy decoding asks
  // for no more, and a vocabulary's worth of float32 per row would be the longest message of its step.
  std::vector<int32_t> best_rows;
  std::vector<int64_t> borders;  // micro-batches: [0, …, rows]
  std::vector<float> stage_ns;   // costs by micro-batch and class of stage, for the order; may be empty
  bool overlap = false;          // overlapped program; otherwise sequential, also of several parts
  // For measurements: ranks meet before each collective, which then takes the network's time alone.
  bool lockstep = false;
  bool observe = false;  // gather all ranks' times afterwards, for the cost table
  float stolen = 0;      // for the order: what a collective takes of the compute lane's core, see simulate()

  int64_t rows() const { return static_cast<int64_t>(token_ids.size()); }
  int micro_batches() const { return static_cast<int>(borders.size()) - 1; }
  bool operator==(const StepBatch&) const = default;
};

/// The likeliest token of a row of logits, the lowest id among equals.
struct BestToken {
  static constexpr int32_t kNoNumber = -1;  // the row is all NaN
  static constexpr int32_t kWholeRow = -2;  // the row of logits itself was asked for
  int32_t id = kWholeRow;
  float logit = 0;

  bool operator==(const BestToken&) const = default;
};

/// Limits a batch is checked against.
struct BatchLimits {
  int64_t max_rows = 0;
  int64_t max_logits_rows = 0;
  int64_t vocab_size = 0;
  int64_t max_positions = 0;
  int64_t kv_blocks = 0;
  int block_size = 0;
  int max_micro_batches = 1;
};

/// Throws Error(kInternal) that names the first inconsistency: spans that do not tile the rows, a
/// token outside the vocabulary, a block outside the cache, an empty micro-batch, …
void check_batch(const StepBatch& batch, const BatchLimits& limits);

std::vector<std::byte> serialize(const StepBatch& batch);
/// Throws Error(kPeer) when the bytes are not a batch.
StepBatch deserialize_batch(std::span<const std::byte> bytes);

/// One micro-batch's part of a batch: everything per token is cut here and nowhere else.
struct MicroBatch {
  int64_t first_row = 0;
  int64_t rows = 0;
  std::vector<int32_t> positions;    // [rows]
  std::vector<int64_t> slots;        // [rows], KV cache rows
  std::vector<AttentionSpan> spans;  // first_row relative to this micro-batch
  std::vector<int64_t> logits_rows;  // relative to this micro-batch, ascending
  int64_t first_logits_row = 0;      // of its logits in the step's
  std::vector<int64_t> best_rows;    // indices into logits_rows: only the likeliest token is wanted
  std::vector<int64_t> whole_rows;   // the other indices
  std::vector<int64_t> owned;        // row_offsets of the ranks' shares, ranks + 1 entries
};
/// `batch` must outlive the result (block tables are pointed to).
std::vector<MicroBatch> cut_batch(const StepBatch& batch, int block_size, int ranks);

}  // namespace duet
