#include "engine/step_builder.h"

#include <gtest/gtest.h>

#include <deque>
#include <random>

namespace duet {
namespace {

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
  const Step step = build_step({piece_of(chunk, 2, 4), piece_of(decode, 4, 1), piece_of(last, 2, 3)});
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
  const Step step = build_step({piece_of(s, 0, 1)});
  expect_sound(step);
  EXPECT_TRUE(step.has_prefill);
  EXPECT_EQ(step.batch.spans[0].form, AttentionForm::kExpanded);
}

TEST(StepBuilder, RecomputationHasTwoForms) {
  Sequence s = make_sequence(0, 3, 4);
  s.reached = 6;
  Step step = build_step({piece_of(s, 0, 7)});
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
  step = build_step({piece_of(s, 4, 2)});
  expect_sound(step);
  ASSERT_EQ(step.batch.spans.size(), 1u);
  EXPECT_EQ(step.batch.spans[0].form, AttentionForm::kAbsorbed);
  EXPECT_TRUE(step.has_prefill);
  EXPECT_TRUE(step.wanted.empty());
}

TEST(StepBuilder, EveryRowOfALogitsRunIsWantedOnce) {
  Sequence s = make_sequence(0, 6, 0);
  s.first_wanted = 0;
  Step step = build_step({piece_of(s, 0, 4)});
  EXPECT_EQ(step.batch.logits_rows, (std::vector<int32_t>{0, 1, 2, 3}));
  s.first_wanted = 4;  // preempted: computed again, not handed over again
  step = build_step({piece_of(s, 0, 6)});
  EXPECT_EQ(step.batch.logits_rows, (std::vector<int32_t>{4, 5}));
  EXPECT_EQ(step.wanted[0].token, 4);
  s.prompt_form = AttentionForm::kAbsorbed;
  step = build_step({piece_of(s, 0, 1)});
  EXPECT_EQ(step.batch.spans[0].form, AttentionForm::kAbsorbed);
  EXPECT_FALSE(step.has_prefill);
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
    const Step step = build_step(pieces);
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

}  // namespace
}  // namespace duet
