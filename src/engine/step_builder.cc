#include "engine/step_builder.h"

#include <algorithm>

namespace duet {

namespace {

// Tokens [first, last) of one piece that share an attention form become one span.
void add_span(const ScheduledPiece& piece, int64_t first, int64_t last, AttentionForm form, Step& step) {
  if (first >= last) return;
  const Sequence& sequence = *piece.sequence;
  StepBatch& batch = step.batch;
  SequenceSpan span;
  span.first_row = batch.rows();
  span.rows = last - first;
  span.start_position = first;
  span.form = form;
  span.block_table = static_cast<int64_t>(batch.block_tables.size());
  span.blocks = static_cast<int64_t>(sequence.blocks.size());
  batch.spans.push_back(span);
  batch.block_tables.insert(batch.block_tables.end(), sequence.blocks.begin(), sequence.blocks.end());
  batch.token_ids.insert(batch.token_ids.end(), sequence.tokens.begin() + first,
                         sequence.tokens.begin() + last);
}

void add_piece(const ScheduledPiece& piece, Step& step) {
  Sequence& sequence = *piece.sequence;
  const int64_t row = step.batch.rows();
  const int64_t end = piece.first + piece.count;
  // Where the prompt's part of the piece ends: its tokens were and will always be computed in the
  // prompt's form, generated ones absorbed, so that a preemption changes no logit.
  const int64_t border = std::clamp(sequence.prompt_tokens, piece.first, end);
  if (sequence.prompt_form == AttentionForm::kAbsorbed) {
    add_span(piece, piece.first, end, AttentionForm::kAbsorbed, step);
  } else {
    add_span(piece, piece.first, border, AttentionForm::kExpanded, step);
    add_span(piece, border, end, AttentionForm::kAbsorbed, step);
  }
  step.prompt_rows += border - piece.first;
  const int64_t fresh = std::clamp(sequence.reached, piece.first, end);
  step.new_prompt_tokens += std::max<int64_t>(border - fresh, 0);
  step.new_generated_tokens += end - std::max(border, fresh);
  for (int64_t token = std::max(piece.first, sequence.first_wanted); token < end; ++token) {
    step.batch.logits_rows.push_back(static_cast<int32_t>(row + token - piece.first));
    if (sequence.best_will_do && token + 1 == sequence.length())
      step.batch.best_rows.push_back(step.batch.logits_rows.back());
    step.wanted.push_back({&sequence, token});
  }
}

bool is_decode(const ScheduledPiece& piece) {
  const Sequence& sequence = *piece.sequence;
  return piece.count == 1 &&
         (piece.first >= sequence.prompt_tokens || sequence.prompt_form == AttentionForm::kAbsorbed);
}

}  // namespace

Step build_step(const std::vector<ScheduledPiece>& pieces) {
  Step step;
  for (const ScheduledPiece& piece : pieces)
    if (is_decode(piece)) add_piece(piece, step);
  for (const ScheduledPiece& piece : pieces) {
    if (is_decode(piece)) continue;
    add_piece(piece, step);
    step.has_prefill = true;
  }
  step.batch.borders = {0, step.batch.rows()};
  return step;
}

}  // namespace duet
