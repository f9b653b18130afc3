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
    step.wanted.push_back({&sequence, token});
  }
}

bool is_decode(const ScheduledPiece& piece) {
  const Sequence& sequence = *piece.sequence;
  return piece.count == 1 &&
         (piece.first >= sequence.prompt_tokens || sequence.prompt_form == AttentionForm::kAbsorbed);
}

}  // namespace

RowCost row_cost(const DeepseekConfig& c, AttentionForm form) {
  const double heads = static_cast<double>(c.num_attention_heads),
               hidden = static_cast<double>(c.hidden_size);
  const double lora = static_cast<double>(c.kv_lora_rank), rope = static_cast<double>(c.qk_rope_head_dim);
  const double nope = static_cast<double>(c.qk_nope_head_dim), v = static_cast<double>(c.v_head_dim);
  const double q_lora = static_cast<double>(c.q_lora_rank);
  const double q = heads * (nope + rope);
  const double attention = (c.q_lora_rank > 0 ? q_lora * (hidden + q) : hidden * q) + hidden * (lora + rope) +
                           heads * lora * (nope + v) + heads * v * hidden;
  const double moe_layers = static_cast<double>(c.num_moe_layers());
  const double layers = static_cast<double>(c.num_hidden_layers);
  const double dense = 3.0 * hidden * static_cast<double>(c.intermediate_size);
  const double experts = 3.0 * hidden * static_cast<double>(c.moe_intermediate_size) *
                             static_cast<double>(c.num_experts_per_tok + c.n_shared_experts) +
                         hidden * static_cast<double>(c.n_routed_experts);
  RowCost cost;
  cost.row = layers * attention + (layers - moe_layers) * dense + moe_layers * experts;
  cost.key = layers * heads * (form == AttentionForm::kAbsorbed ? 2.0 * lora + rope : nope + rope + v);
  return cost;
}

std::vector<int64_t> micro_batch_borders(const std::vector<SequenceSpan>& spans, bool has_prefill,
                                         const RowCost& cost, const SplitPolicy& policy) {
  const int64_t rows = spans.empty() ? 0 : spans.back().first_row + spans.back().rows;
  if (policy.split_at > 0) {
    if (policy.split_at >= rows) return {0, rows};
    std::vector<int64_t> borders{0, policy.split_at};
    const int64_t rest = rows - policy.split_at;
    const int64_t parts = std::clamp<int64_t>(policy.micro_batches - 1, 1, rest);
    for (int64_t part = 1; part <= parts; ++part) borders.push_back(policy.split_at + rest * part / parts);
    return borders;
  }
  if (!policy.dbo || policy.micro_batches < 2 || !worth_splitting(rows, has_prefill, policy.thresholds))
    return {0, rows};
  // Two spans of one sequence may be parted like any others: the second reads what the first wrote.
  std::vector<SpanShape> shapes;
  shapes.reserve(spans.size());
  for (const SequenceSpan& span : spans) shapes.push_back({span.rows, span.start_position});
  return split_rows(shapes, cost, {policy.micro_batches, policy.imbalance});
}

StepBuilder::StepBuilder(const DeepseekConfig& config, const SplitPolicy& policy)
    : policy_(policy),
      prefill_cost_(row_cost(config, AttentionForm::kExpanded)),
      decode_cost_(row_cost(config, AttentionForm::kAbsorbed)) {}

Step StepBuilder::build(const std::vector<ScheduledPiece>& pieces) const {
  Step step;
  for (const ScheduledPiece& piece : pieces)
    if (is_decode(piece)) add_piece(piece, step);
  for (const ScheduledPiece& piece : pieces) {
    if (is_decode(piece)) continue;
    add_piece(piece, step);
    step.has_prefill = true;
  }
  step.batch.borders = micro_batch_borders(step.batch.spans, step.has_prefill,
                                           step.has_prefill ? prefill_cost_ : decode_cost_, policy_);
  step.batch.overlap = step.batch.micro_batches() > 1;
  return step;
}

}  // namespace duet
