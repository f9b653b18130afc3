// The exactness contract: one model, rank count and path gives the same logits, bit for bit, with
// overlap off and on, wherever a step is cut, and whoever shares the batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "golden/harness.h"

namespace duet {
namespace {

struct Case {
  const char* name;
  int ranks;
  ExpertPath path;
  ComputeDtype dtype;
  KvCacheDtype cache = KvCacheDtype::kAuto;
};

RankOptions options_for(const Case& c) {
  RankOptions options = golden_options(golden_dir(c.name), c.ranks, c.path);
  options.dtype = c.dtype;
  options.kv_cache = c.cache;
  options.wire = c.dtype == ComputeDtype::kFloat32 ? DType::kF32 : DType::kBf16;
  options.max_batched_tokens = options.max_logits_rows = 256;
  options.block_size = 3;
  options.kv_cache_bytes = int64_t{2} << 20;
  return options;
}

class Exactness : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    group_ = start_group(options_for(GetParam()));
    if (!group_) GTEST_SKIP() << "another rank checks, or the job has another size";
    vocab_ = group_->info().config.vocab_size;
  }
  std::unique_ptr<RankGroup> group_;
  int64_t vocab_ = 0;
};

TEST_P(Exactness, EverySplitPositionOfFortyTokens) {
  // Three requests, so that borders fall between and inside sequences.
  const std::vector<std::vector<int32_t>> prompts{random_tokens(17, vocab_, 1), random_tokens(1, vocab_, 2),
                                                  random_tokens(22, vocab_, 3)};
  const Logits off = run_prompts(*group_, prompts, {});
  for (int64_t border = 1; border < 40; ++border) {
    Cut cut;
    cut.borders = {border};
    cut.overlap = true;
    ASSERT_TRUE(same_bits(off, run_prompts(*group_, prompts, cut))) << "border at row " << border;
    cut.borders = {border, border + (40 - border) / 2};
    ASSERT_TRUE(same_bits(off, run_prompts(*group_, prompts, cut)))
        << "three micro-batches, first border " << border;
  }
  // And back: nothing may stay behind in a module that an overlapped step has used.
  ASSERT_TRUE(same_bits(off, run_prompts(*group_, prompts, {})));
  Cut split_only;  // the sequential program of two micro-batches
  split_only.borders = {13};
  ASSERT_TRUE(same_bits(off, run_prompts(*group_, prompts, split_only)));
}

TEST_P(Exactness, ChunksAndNeighboursChangeNothing) {
  const std::vector<std::vector<int32_t>> prompts{random_tokens(23, vocab_, 4), random_tokens(9, vocab_, 5)};
  const Logits whole = run_prompts(*group_, prompts, {});
  for (int64_t chunk : {1, 5, 8}) {
    Cut cut;
    cut.chunk = chunk;
    ASSERT_TRUE(same_bits(whole, run_prompts(*group_, prompts, cut))) << "chunks of " << chunk;
    cut.micro_batches = 2;
    cut.overlap = true;
    ASSERT_TRUE(same_bits(whole, run_prompts(*group_, prompts, cut)))
        << "chunks of " << chunk << ", overlapped";
  }
  for (size_t i = 0; i < prompts.size(); ++i) {
    ASSERT_TRUE(same_bits({whole[i]}, run_prompts(*group_, {prompts[i]}, {}))) << "prompt " << i << " alone";
  }
}

struct MixedResult {
  std::vector<float> logits;
  std::vector<BestToken> best;
};

// Prefills three sequences, then one step with a decode row of each and a fresh prompt, cut at `borders`.
MixedResult mixed_result(RankGroup& group, int64_t vocab, const std::vector<int64_t>& borders, bool overlap,
                         const std::vector<int32_t>& logits_rows, const std::vector<int32_t>& best_rows) {
  const int bs = group.info().block_size;
  const std::vector<std::vector<int32_t>> old{random_tokens(7, vocab, 11), random_tokens(12, vocab, 12),
                                              random_tokens(5, vocab, 13)};
  const std::vector<int32_t> fresh = random_tokens(19, vocab, 14);
  const auto table = [&](int64_t sequence) {
    std::vector<int32_t> blocks;
    for (int32_t b = 0; b * bs < 24; ++b)
      blocks.push_back(static_cast<int32_t>(sequence) + 4 * b);  // interleaved
    return blocks;
  };
  StepBatch prefill, mixed;
  const auto add = [&](StepBatch& batch, const std::vector<int32_t>& tokens, int64_t start,
                       AttentionForm form, int64_t sequence) {
    const std::vector<int32_t> blocks = table(sequence);
    batch.spans.push_back({batch.rows(), static_cast<int64_t>(tokens.size()), start, form,
                           static_cast<int64_t>(batch.block_tables.size()),
                           static_cast<int64_t>(blocks.size())});
    batch.block_tables.insert(batch.block_tables.end(), blocks.begin(), blocks.end());
    batch.token_ids.insert(batch.token_ids.end(), tokens.begin(), tokens.end());
  };
  for (size_t i = 0; i < old.size(); ++i)
    add(prefill, old[i], 0, AttentionForm::kExpanded, static_cast<int64_t>(i));
  prefill.borders = {0, prefill.rows()};
  group.run(prefill);
  for (size_t i = 0; i < old.size(); ++i) {
    add(mixed, {static_cast<int32_t>(i + 1)}, static_cast<int64_t>(old[i].size()), AttentionForm::kAbsorbed,
        static_cast<int64_t>(i));
  }
  add(mixed, fresh, 0, AttentionForm::kExpanded, 3);
  mixed.logits_rows = logits_rows;
  mixed.best_rows = best_rows;
  mixed.borders = {0};
  mixed.borders.insert(mixed.borders.end(), borders.begin(), borders.end());
  mixed.borders.push_back(mixed.rows());
  mixed.overlap = overlap;
  const StepResult result = group.run(mixed);
  return {{result.logits.begin(), result.logits.end()}, {result.best.begin(), result.best.end()}};
}

Logits mixed_step(RankGroup& group, int64_t vocab, const std::vector<int64_t>& borders, bool overlap,
                  const std::vector<int32_t>& logits_rows = {0, 1, 2, 3, 10, 21}) {
  return {mixed_result(group, vocab, borders, overlap, logits_rows, {}).logits};
}

TEST_P(Exactness, TheLikeliestTokenStandsForItsRow) {
  const std::vector<int32_t> rows{0, 1, 2, 3, 10, 21};
  const MixedResult whole = mixed_result(*group_, vocab_, {}, false, rows, {});
  ASSERT_EQ(whole.best.size(), rows.size());
  for (const std::vector<int32_t>& best_rows :
       std::vector<std::vector<int32_t>>{rows, {0}, {21}, {1, 3, 21}, {0, 2, 10}}) {
    for (const std::vector<int64_t>& borders : std::vector<std::vector<int64_t>>{{}, {2}, {3, 11}}) {
      const MixedResult some = mixed_result(*group_, vocab_, borders, !borders.empty(), rows, best_rows);
      for (size_t i = 0; i < rows.size(); ++i) {
        const float* row = whole.logits.data() + static_cast<int64_t>(i) * vocab_;
        if (std::binary_search(best_rows.begin(), best_rows.end(), rows[i])) {
          const float* best = std::max_element(row, row + vocab_);  // the first of equals
          ASSERT_EQ(some.best[i], (BestToken{static_cast<int32_t>(best - row), *best})) << "row " << rows[i];
        } else {
          ASSERT_EQ(some.best[i].id, BestToken::kWholeRow);
          ASSERT_EQ(std::memcmp(some.logits.data() + static_cast<int64_t>(i) * vocab_, row,
                                static_cast<size_t>(vocab_) * sizeof(float)),
                    0)
              << "row " << rows[i] << ", " << borders.size() << " borders";
        }
      }
    }
  }
}

TEST_P(Exactness, MixedPrefillAndDecodeSteps) {
  const Logits off = mixed_step(*group_, vocab_, {}, false);
  for (int64_t border = 1; border < 22; ++border) {
    ASSERT_TRUE(same_bits(off, mixed_step(*group_, vocab_, {border}, true))) << "border at row " << border;
    if (border < 21) {
      ASSERT_TRUE(same_bits(off, mixed_step(*group_, vocab_, {border, border + 1}, true))) << border;
    }
  }
}

TEST_P(Exactness, RowsWithoutLogitsMayStopEarly) {
  // The last layer drops rows whose logits nobody wants: that must not show in the others.
  std::vector<int32_t> every;
  for (int32_t r = 0; r < 22; ++r) every.push_back(r);
  const std::vector<float> all = mixed_step(*group_, vocab_, {}, false, every)[0];
  for (const std::vector<int32_t>& wanted :
       std::vector<std::vector<int32_t>>{{21}, {0}, {2, 3}, {5, 6, 7, 12, 20}, {}}) {
    for (const std::vector<int64_t>& borders : std::vector<std::vector<int64_t>>{{}, {6}, {1, 13}}) {
      const std::vector<float> some = mixed_step(*group_, vocab_, borders, !borders.empty(), wanted)[0];
      ASSERT_EQ(some.size(), wanted.size() * static_cast<size_t>(vocab_));
      for (size_t i = 0; i < wanted.size(); ++i) {
        ASSERT_EQ(std::memcmp(some.data() + i * static_cast<size_t>(vocab_), all.data() + wanted[i] * vocab_,
                              static_cast<size_t>(vocab_) * sizeof(float)),
                  0)
            << "row " << wanted[i] << ", " << borders.size() << " borders";
      }
    }
  }
}

TEST_P(Exactness, TinyStepsOverlapToo) {
  // 1, 2, 3 rows: parts of one row, ranks that own no row, experts without a token.
  for (int64_t rows : {1, 2, 3}) {
    const std::vector<std::vector<int32_t>> prompts{random_tokens(rows, vocab_, 20)};
    const Logits off = run_prompts(*group_, prompts, {});
    Cut cut;
    cut.micro_batches = static_cast<int>(rows);
    cut.overlap = true;
    ASSERT_TRUE(same_bits(off, run_prompts(*group_, prompts, cut))) << rows << " rows";
  }
}

TEST_P(Exactness, OverlappedStepsAreCounted) {
  // "Feature silently not wired": the statistics must show overlapped stages for this model class.
  group_->reset_stats();
  Cut cut;
  cut.micro_batches = 2;
  cut.overlap = true;
  run_prompts(*group_, {random_tokens(24, vocab_, 30)}, cut);
  const RunStats stats = group_->stats();
  EXPECT_EQ(stats.steps, 1);
  EXPECT_EQ(stats.steps_overlapped, 1);
  int64_t collectives = 0;
  for (const RunStats::Kind& kind : stats.kinds) collectives += kind.comm ? kind.count : 0;
  EXPECT_GE(collectives, 2 * 2 * group_->info().config.num_hidden_layers);
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
  const Case& c = info.param;
  std::string name = c.name;
  for (char& letter : name) letter = letter == '-' ? '_' : letter;
  return name + "_r" + std::to_string(c.ranks) +
         (c.path == ExpertPath::kAllToAll ? "_all_to_all_" : "_all_reduce_") + to_string(c.dtype) +
         (c.cache == KvCacheDtype::kInt8 ? "_int8_cache" : "");
}

TEST_P(Exactness, GroupedQueryAttentionDecodesWithTheBitsOfPrefill) {
  if (group_->info().config.latent_attention()) GTEST_SKIP() << "has two forms of attention";
  const std::vector<std::vector<int32_t>> prompts{random_tokens(30, vocab_, 1), random_tokens(11, vocab_, 2)};
  const Logits prefill = run_prompts(*group_, prompts, {});
  Cut cut;
  cut.decode = true;
  EXPECT_TRUE(same_bits(prefill, run_prompts(*group_, prompts, cut)));
}

// Long enough for whole tiles of keys that micro-batches share (ExpandedTiles), also out of earlier steps.
TEST(LongSequences, PartsOfOneShareWhatTheyExpand) {
  constexpr ExpertPath kPath = ExpertPath::kAllReduce;
  for (const Case& c :
       {Case{"v3-tiny", 2, kPath, ComputeDtype::kFloat32}, Case{"v3-tiny", 2, kPath, ComputeDtype::kBfloat16},
        Case{"v3-tiny", 2, kPath, ComputeDtype::kBfloat16, KvCacheDtype::kInt8}}) {
    RankOptions options = options_for(c);
    options.max_batched_tokens = options.max_logits_rows = 700;
    options.max_micro_batches = 4;
    const auto group = start_group(options);
    if (!group) GTEST_SKIP() << "another rank checks, or the job has another size";
    const int64_t vocab = group->info().config.vocab_size;
    const std::vector<std::vector<int32_t>> prompts{random_tokens(500, vocab, 21),
                                                    random_tokens(150, vocab, 22)};
    const Logits whole = run_prompts(*group, prompts, {});
    for (const std::vector<int64_t>& borders :
         std::vector<std::vector<int64_t>>{{128}, {129, 257}, {40, 300, 600}, {250, 499, 520}}) {
      Cut cut;
      cut.borders = borders;
      cut.overlap = true;
      ASSERT_TRUE(same_bits(whole, run_prompts(*group, prompts, cut))) << "border at " << borders.front();
    }
    Cut chunks;
    chunks.chunk = 190;
    chunks.micro_batches = 3;
    chunks.overlap = true;
    ASSERT_TRUE(same_bits(whole, run_prompts(*group, prompts, chunks)));
  }
}

// Every two of ranks, path and type meet; all three would double the longest part of the test run.
std::vector<Case> family_cases() {
  std::vector<Case> cases;
  for (const char* family : kFamilies) {
    cases.push_back({family, 1, ExpertPath::kAllReduce, ComputeDtype::kFloat32});
    cases.push_back({family, 1, ExpertPath::kAllToAll, ComputeDtype::kBfloat16});
    cases.push_back({family, 2, ExpertPath::kAllReduce, ComputeDtype::kBfloat16});
    cases.push_back({family, 2, ExpertPath::kAllToAll, ComputeDtype::kFloat32});
    cases.push_back({family, 4, ExpertPath::kAllReduce, ComputeDtype::kFloat32});
    cases.push_back({family, 4, ExpertPath::kAllToAll, ComputeDtype::kBfloat16});
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Families, Exactness, testing::ValuesIn(family_cases()), case_name);
INSTANTIATE_TEST_SUITE_P(
    Half, Exactness,
    testing::Values(Case{"v3-tiny-bf16", 2, ExpertPath::kAllReduce, ComputeDtype::kHalf},
                    Case{"v3-tiny-bf16", 8, ExpertPath::kAllToAll, ComputeDtype::kBfloat16},
                    Case{"llama-tiny", 8, ExpertPath::kAllReduce, ComputeDtype::kHalf},
                    Case{"qwen3moe-tiny", 2, ExpertPath::kAllToAll, ComputeDtype::kHalf}),
    case_name);
INSTANTIATE_TEST_SUITE_P(
    Quantised, Exactness,
    testing::Values(Case{"v3-tiny-w8a8", 2, ExpertPath::kAllReduce, ComputeDtype::kBfloat16},
                    Case{"v3-tiny-w8a8-ms", 4, ExpertPath::kAllToAll, ComputeDtype::kBfloat16},
                    Case{"v3-tiny-fp8", 2, ExpertPath::kAllReduce, ComputeDtype::kBfloat16}),
    case_name);
INSTANTIATE_TEST_SUITE_P(
    Int8Cache, Exactness,
    testing::Values(
        Case{"v3-tiny", 1, ExpertPath::kAllReduce, ComputeDtype::kBfloat16, KvCacheDtype::kInt8},
        Case{"v2-tiny", 2, ExpertPath::kAllReduce, ComputeDtype::kFloat32, KvCacheDtype::kInt8},
        Case{"v2lite-tiny", 4, ExpertPath::kAllToAll, ComputeDtype::kBfloat16, KvCacheDtype::kInt8},
        Case{"v3-tiny-w8a8", 2, ExpertPath::kAllToAll, ComputeDtype::kBfloat16, KvCacheDtype::kInt8}),
    case_name);

}  // namespace
}  // namespace duet
