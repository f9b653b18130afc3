#include "engine/probe_batch.h"

#include <algorithm>

namespace duet {

namespace {

int64_t blocks_of(int64_t tokens, int block_size) {
  return (tokens + block_size - 1) / block_size;
}

void add_sequence(StepBatch& batch, int64_t rows, int64_t context, AttentionForm form, int block_size,
                  int64_t vocab_size) {
  SequenceSpan span;
  span.first_row = batch.rows();
  span.rows = rows;
  span.start_position = context;
  span.form = form;
  span.block_table = static_cast<int64_t>(batch.block_tables.size());
  span.blocks = blocks_of(context + rows, block_size);
  batch.spans.push_back(span);
  for (int64_t b = 0; b < span.blocks; ++b)
    batch.block_tables.push_back(static_cast<int32_t>(batch.block_tables.size()));
  for (int64_t i = 0; i < rows; ++i)
    batch.token_ids.push_back(static_cast<int32_t>((batch.rows() * 7919 + 13) % vocab_size));
  batch.logits_rows.push_back(static_cast<int32_t>(batch.rows() - 1));
}

// Row counts of the sequences of a step, decodes first, as the engine orders them.
template <typename Visit>
void each_sequence(const ProbeShape& s, const Visit& visit) {
  const int64_t decodes = s.phase == ProbePhase::kDecode  ? s.tokens
                          : s.phase == ProbePhase::kMixed ? s.decodes
                                                          : 0;
  for (int64_t i = 0; i < decodes; ++i) visit(int64_t{1}, AttentionForm::kAbsorbed);
  if (s.phase == ProbePhase::kDecode) return;
  const int64_t sequences = std::clamp<int64_t>(s.sequences, 1, s.tokens);
  for (int64_t i = 0; i < sequences; ++i)
    visit(s.tokens * (i + 1) / sequences - s.tokens * i / sequences, AttentionForm::kExpanded);
}

}  // namespace

const char* to_string(ProbePhase phase) {
  switch (phase) {
    case ProbePhase::kPrefill: return "prefill";
    case ProbePhase::kDecode: return "decode";
    case ProbePhase::kMixed: return "mixed";
  }
  return "unknown";
}

int64_t ProbeShape::blocks(int block_size) const {
  int64_t blocks = 0;
  each_sequence(*this, [&](int64_t rows, AttentionForm) { blocks += blocks_of(context + rows, block_size); });
  return blocks;
}

StepBatch probe_batch(const ProbeShape& shape, int block_size, int64_t vocab_size, bool whole_logits) {
  StepBatch batch;
  each_sequence(shape, [&](int64_t rows, AttentionForm form) {
    add_sequence(batch, rows, shape.context, form, block_size, vocab_size);
  });
  if (!whole_logits) batch.best_rows = batch.logits_rows;
  batch.borders = {0, batch.rows()};
  return batch;
}

}  // namespace duet
