#include "engine/step_builder.h"

#include <gtest/gtest.h>

#include <deque>
#include <random>

namespace duet {
namespace {

DeepseekConfig small_config() {
  DeepseekConfig c;
  c.vocab_size = 100;
  c.hidden_size = 64;
  c.num_hidden_layers = 3;
  c.num_attention_heads = 4;
  c.q_lora_rank = 24;
  c.kv_lora_rank = 16;
  c.qk_nope_head_dim = 16;
  c.qk_rope_head_dim = 8;
  c.v_head_dim = 16;
  c.intermediate_size = 128;
  c.moe_intermediate_size = 32;
  c.n_routed_experts = 8;
  c.num_experts_per_tok = 2;
  c.n_shared_experts = 1;
  c.first_k_dense_replace = 1;
  return c;
}

constexpr int kBlock = 4;

// A sequence of ids id·1000 + index, with blocks enough for all of them.
Sequence make_sequence(int64_t id, int64_t prompt, int64_t generated) {
  Sequence s;
  s.id = id;
  s.prompt_tokens = prompt;
  for (int64_t i = 0; i < prompt + generated; ++i) s.tokens.push_back(static_cast<int32_t>(id * 1000 + i));
  s.first_wanted = s.length() - 1;
  return s;
}

ScheduledPiece piece_of(Sequence& s, int64_t first, int64_t count) {
  s.computed = first;
  s.blocks.clear();
  for (int64_t b = 0; b * kBlock < first + count; ++b)
    s.blocks.push_back(static_cast<int32_t>(s.id * 100 + b));
  return {&s, first, count};
}

// Everything that check_batch demands and this room can see.
void expect_sound(const Step& step) {
  const StepBatch& b = step.batch;
  int64_t row = 0;
  size_t table = 0;
  for (const SequenceSpan& span : b.spans) {
    EXPECT_EQ(span.first_row, row);
    EXPECT_GT(span.rows, 0);
    EXPECT_EQ(static_cast<size_t>(span.block_table), table);
    EXPECT_GE(span.blocks * kBlock, span.start_position + span.rows);
    row += span.rows;
    table += static_cast<size_t>(span.blocks);
  }
  EXPECT_EQ(row, b.rows());
  EXPECT_EQ(table, b.block_tables.size());
  ASSERT_GE(b.borders.size(), 2u);
  EXPECT_EQ(b.borders.front(), 0);
  EXPECT_EQ(b.borders.back(), b.rows());
  for (size_t i = 1; i < b.borders.size(); ++i) EXPECT_LT(b.borders[i - 1], b.borders[i]);
  EXPECT_EQ(b.overlap, b.borders.size() > 2);
  EXPECT_TRUE(std::is_sorted(b.logits_rows.begin(), b.logits_rows.end()));
  EXPECT_EQ(b.logits_rows.size(), step.wanted.size());
}

TEST(StepBuilder, DecodesFirstThenPrefills) {
  Sequence chunk = make_sequence(1, 9, 0), decode = make_sequence(2, 3, 2), last = make_sequence(3, 5, 0);
  const StepBuilder builder(small_config(), {});
  const Step step = builder.build({piece_of(chunk, 2, 4), piece_of(decode, 4, 1), piece_of(last, 2, 3)});
  expect_sound(step);
  EXPECT_EQ(step.batch.token_ids, (std::vector<int32_t>{2004, 1002, 1003, 1004, 1005, 3002, 3003, 3004}));
  ASSERT_EQ(step.batch.spans.size(), 3u);
  EXPECT_EQ(step.batch.spans[0].form, AttentionForm::kAbsorbed);
  EXPECT_EQ(step.batch.spans[0].start_position, 4);
  EXPECT_EQ(step.batch.spans[1].form, AttentionForm::kExpanded);
  EXPECT_EQ(step.batch.spans[1].start_position, 2);
  // The unfinished prompt wants no logits.
  EXPECT_EQ(step.batch.logits_rows, (std::vector<int32_t>{0, 7}));
  EXPECT_EQ(step.wanted[0].sequence, &decode);
  EXPECT_EQ(step.wanted[1].sequence, &last);
  EXPECT_EQ(step.wanted[1].token, 4);
  EXPECT_TRUE(step.has_prefill);
  EXPECT_EQ(step.prompt_rows, 7);
}

TEST(StepBuilder, AOneTokenPromptIsAPrefill) {
  Sequence s = make_sequence(0, 1, 0);
  const Step step = StepBuilder(small_config(), {}).build({piece_of(s, 0, 1)});
  expect_sound(step);
  EXPECT_TRUE(step.has_prefill);
  EXPECT_EQ(step.batch.spans[0].form, AttentionForm::kExpanded);
}

TEST(StepBuilder, RecomputationHasTwoForms) {
  Sequence s = make_sequence(0, 3, 4);
  s.reached = 6;
  const StepBuilder builder(small_config(), {});
  Step step = builder.build({piece_of(s, 0, 7)});
  expect_sound(step);
  ASSERT_EQ(step.batch.spans.size(), 2u);
  EXPECT_EQ(step.batch.spans[0].form, AttentionForm::kExpanded);
  EXPECT_EQ(step.batch.spans[0].rows, 3);
  EXPECT_EQ(step.batch.spans[1].form, AttentionForm::kAbsorbed);
  EXPECT_EQ(step.batch.spans[1].rows, 4);
  EXPECT_EQ(step.batch.spans[1].start_position, 3);
  EXPECT_EQ(step.batch.logits_rows, (std::vector<int32_t>{6}));
  EXPECT_EQ(step.new_prompt_tokens, 0);
  EXPECT_EQ(step.new_generated_tokens, 1);  // the rest had been computed before
  // A later chunk of generated tokens alone is absorbed, and still counts as a prefill step.
  step = builder.build({piece_of(s, 4, 2)});
  expect_sound(step);
  ASSERT_EQ(step.batch.spans.size(), 1u);
  EXPECT_EQ(step.batch.spans[0].form, AttentionForm::kAbsorbed);
  EXPECT_TRUE(step.has_prefill);
  EXPECT_TRUE(step.wanted.empty());
}

TEST(StepBuilder, EveryRowOfALogitsRunIsWantedOnce) {
  Sequence s = make_sequence(0, 6, 0);
  s.first_wanted = 0;
  const StepBuilder builder(small_config(), {});
  Step step = builder.build({piece_of(s, 0, 4)});
  EXPECT_EQ(step.batch.logits_rows, (std::vector<int32_t>{0, 1, 2, 3}));
  s.first_wanted = 4;  // preempted: computed again, not handed over again
  step = builder.build({piece_of(s, 0, 6)});
  EXPECT_EQ(step.batch.logits_rows, (std::vector<int32_t>{4, 5}));
  EXPECT_EQ(step.wanted[0].token, 4);
  s.prompt_form = AttentionForm::kAbsorbed;
  step = builder.build({piece_of(s, 0, 1)});
  EXPECT_EQ(step.batch.spans[0].form, AttentionForm::kAbsorbed);
  EXPECT_FALSE(step.has_prefill);
}

TEST(StepBuilder, SplitAtEdges) {
  Sequence s = make_sequence(0, 10, 0);
  const auto piece = piece_of(s, 0, 10);
  SplitPolicy policy;
  policy.micro_batches = 2;
  auto borders = [&](int64_t at, int parts) {
    policy.split_at = at;
    policy.micro_batches = parts;
    const Step step = StepBuilder(small_config(), policy).build({piece});
    expect_sound(step);
    return step.batch.borders;
  };
  using Borders = std::vector<int64_t>;
  EXPECT_EQ(borders(1, 2), (Borders{0, 1, 10}));
  EXPECT_EQ(borders(9, 2), (Borders{0, 9, 10}));
  EXPECT_EQ(borders(10, 2), (Borders{0, 10}));
  EXPECT_EQ(borders(11, 2), (Borders{0, 10}));
  EXPECT_EQ(borders(4, 3), (Borders{0, 4, 7, 10}));
  EXPECT_EQ(borders(9, 3), (Borders{0, 9, 10}));  // the rest is one row: no empty part
  EXPECT_EQ(borders(7, 5), (Borders{0, 7, 8, 9, 10}));
  EXPECT_EQ(borders(3, 1), (Borders{0, 3, 10}));
}

TEST(StepBuilder, EachThresholdActsAtItsEdge) {
  SplitPolicy policy;
  policy.dbo = true;
  policy.thresholds = {8, 3};
  auto parts = [&](int64_t prompt_rows, int64_t decodes) {
    std::deque<Sequence> sequences;
    std::vector<ScheduledPiece> pieces;
    if (prompt_rows > 0) {
      sequences.push_back(make_sequence(0, prompt_rows, 0));
      pieces.push_back(piece_of(sequences.back(), 0, prompt_rows));
    }
    for (int64_t i = 0; i < decodes; ++i) {
      sequences.push_back(make_sequence(i + 1, 2, 1));
      pieces.push_back(piece_of(sequences.back(), 2, 1));
    }
    const Step step = StepBuilder(small_config(), policy).build(pieces);
    expect_sound(step);
    return step.batch.micro_batches();
  };
  EXPECT_EQ(parts(7, 0), 1);
  EXPECT_EQ(parts(8, 0), 2);
  EXPECT_EQ(parts(0, 2), 1);
  EXPECT_EQ(parts(0, 3), 2);
  EXPECT_EQ(parts(2, 5), 1);  // mixed: the threshold of prefill, over all rows
  EXPECT_EQ(parts(2, 6), 2);
  policy.micro_batches = 3;
  EXPECT_EQ(parts(8, 0), 3);
  policy.micro_batches = 1;
  EXPECT_EQ(parts(8, 0), 1);
  policy.micro_batches = 2;
  policy.dbo = false;
  EXPECT_EQ(parts(100, 0), 1);
}

TEST(StepBuilder, ImbalanceDecidesBetweenWholeRequestsAndACut) {
  Sequence a = make_sequence(0, 22, 0), b = make_sequence(1, 18, 0);
  SplitPolicy policy;
  policy.dbo = true;
  policy.thresholds = {2, 2};
  policy.imbalance = 0.2;
  Step step = StepBuilder(small_config(), policy).build({piece_of(a, 0, 22), piece_of(b, 0, 18)});
  EXPECT_EQ(step.batch.borders, (std::vector<int64_t>{0, 22, 40}));
  policy.imbalance = 0.01;
  step = StepBuilder(small_config(), policy).build({piece_of(a, 0, 22), piece_of(b, 0, 18)});
  EXPECT_LT(step.batch.borders[1], 22);
  EXPECT_GT(step.batch.borders[1], 18);
}

TEST(StepBuilder, RandomStepsTile) {
  std::mt19937 rng(5);
  auto pick = [&](int64_t lo, int64_t hi) { return std::uniform_int_distribution<int64_t>(lo, hi)(rng); };
  for (int round = 0; round < 500; ++round) {
    std::deque<Sequence> sequences;
    std::vector<ScheduledPiece> pieces;
    int64_t rows = 0, wanted = 0;
    for (int64_t id = 0, n = pick(1, 9); id < n; ++id) {
      Sequence& s = sequences.emplace_back(make_sequence(id, pick(1, 12), pick(0, 3) ? 0 : pick(1, 6)));
      const int64_t first = pick(0, s.length() - 1), count = pick(1, s.length() - first);
      pieces.push_back(piece_of(s, first, count));
      rows += count;
      wanted += first + count == s.length();
    }
    SplitPolicy policy;
    policy.dbo = pick(0, 1);
    policy.micro_batches = static_cast<int>(pick(1, 4));
    policy.thresholds = {pick(0, 30), pick(0, 10)};
    policy.split_at = pick(0, 2) ? 0 : pick(1, 40);
    const Step step = StepBuilder(small_config(), policy).build(pieces);
    expect_sound(step);
    ASSERT_EQ(step.batch.rows(), rows);
    ASSERT_EQ(static_cast<int64_t>(step.wanted.size()), wanted);
    for (size_t i = 0; i < step.wanted.size(); ++i) {
      const WantedLogits& w = step.wanted[i];
      ASSERT_EQ(step.batch.token_ids[static_cast<size_t>(step.batch.logits_rows[i])],
                w.sequence->tokens[static_cast<size_t>(w.token)]);
      ASSERT_EQ(w.token, w.sequence->length() - 1);
    }
  }
}

TEST(RowCost, CountsTheFormsAndLayers) {
  DeepseekConfig c = small_config();
  const RowCost expanded = row_cost(c, AttentionForm::kExpanded),
                absorbed = row_cost(c, AttentionForm::kAbsorbed);
  // Per layer: 24·64 + 24·96 (q) + 64·24 (kv_a) + 4·16·32 (kv_b) + 4·16·64 (o) = 11520; dense
  // 3·64·128 = 24576, MoE 3·64·32·3 + 64·8 = 18944.
  EXPECT_EQ(expanded.row, 3 * 11520 + 24576 + 2 * 18944);
  EXPECT_EQ(expanded.key, 3 * 4 * (24 + 16));
  EXPECT_EQ(absorbed.row, expanded.row);
  EXPECT_EQ(absorbed.key, 3 * 4 * (2 * 16 + 8));
  c.q_lora_rank = 0;
  EXPECT_EQ(row_cost(c, AttentionForm::kExpanded).row, expanded.row - 3 * (24 * 64 + 24 * 96) + 3 * 64 * 96);
}

}  // namespace
}  // namespace duet
