// Logits against Hugging Face's implementation in float64, in every cut, rank count and path.
#include <gtest/gtest.h>

#include <algorithm>

#include "golden/harness.h"

namespace duet {
namespace {

RankOptions options_for(const std::string& name, int ranks, ExpertPath path, DType wire) {
  RankOptions options = golden_options(golden_dir(name), ranks, path);
  options.wire = wire;
  return options;
}

using Case = std::tuple<const char*, int, ExpertPath>;

class GoldenLogits : public testing::TestWithParam<Case> {};

// 2e-5: float32 rounding over three layers, against a float64 reference.
constexpr double kTolerance = 2e-5;

TEST_P(GoldenLogits, MatchInEveryCut) {
  const auto [name, ranks, path] = GetParam();
  const Golden golden = load_golden(name);
  const auto group = start_group(options_for(name, ranks, path, DType::kF32));
  if (!group) GTEST_SKIP() << "another rank checks, or the job has another size";
  std::vector<Cut> cuts(1);
  for (int64_t chunk : {1, 7, 32}) {
    Cut cut;
    cut.chunk = chunk;
    cuts.push_back(cut);
  }
  Cut decode;
  decode.decode = true;
  cuts.push_back(decode);
  for (int m : {2, 3}) {
    for (size_t i = 0, n = 5; i < n; ++i) {
      Cut cut = cuts[i];
      cut.micro_batches = m;
      cut.overlap = true;
      cuts.push_back(cut);
    }
  }
  for (const Cut& cut : cuts) {
    SCOPED_TRACE(testing::Message() << "chunk " << cut.chunk << " decode " << cut.decode << " micro-batches "
                                    << cut.micro_batches);
    const auto logits = run_prompts(*group, golden.prompts, cut);
    for (size_t i = 0; i < golden.prompts.size(); ++i) {
      EXPECT_LE(relative_error(logits[i], golden.logits[i]), kTolerance) << "prompt " << i;
    }
  }
}

TEST_P(GoldenLogits, GreedyTokensEqual) {
  const auto [name, ranks, path] = GetParam();
  const Golden golden = load_golden(name);
  const auto group = start_group(options_for(name, ranks, path, DType::kF32));
  if (!group) GTEST_SKIP() << "another rank checks, or the job has another size";
  // The reference continuation is appended and scored at once: every argmax must be the next token.
  for (size_t i = 0; i < golden.prompts.size(); ++i) {
    std::vector<int32_t> tokens = golden.prompts[i];
    tokens.insert(tokens.end(), golden.greedy[i].begin(), golden.greedy[i].end() - 1);
    const auto logits = run_prompts(*group, {tokens}, {})[0];
    for (size_t t = 0; t < golden.greedy[i].size(); ++t) {
      const auto row = logits.begin() + static_cast<int64_t>(golden.prompts[i].size() - 1 + t) * golden.vocab;
      EXPECT_EQ(std::max_element(row, row + golden.vocab) - row, golden.greedy[i][t])
          << "prompt " << i << " token " << t;
    }
  }
}

TEST_P(GoldenLogits, Bf16OnTheWireStaysClose) {
  const auto [name, ranks, path] = GetParam();
  const Golden golden = load_golden(name);
  const auto group = start_group(options_for(name, ranks, path, DType::kBf16));
  if (!group) GTEST_SKIP() << "another rank checks, or the job has another size";
  const auto logits = run_prompts(*group, golden.prompts, {});
  // By token: where rounding turns a near tie of the gate, one token takes another expert and is off by a
  // tenth or more, and with it, to a degree, those that attend to it. It says nothing about the others.
  const auto errors = token_errors(logits, golden.logits, golden.vocab);
  // bf16 rounds by up to 2^-9 = 2e-3 at each of some ten points between the embedding and the logits.
  EXPECT_LE(errors[errors.size() / 2], 1e-2);
  EXPECT_LE(errors[errors.size() * 3 / 4], 3e-2);
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
  std::string name = std::get<0>(info.param);
  std::replace(name.begin(), name.end(), '-', '_');
  return name + "_r" + std::to_string(std::get<1>(info.param)) +
         (std::get<2>(info.param) == ExpertPath::kAllToAll ? "_all_to_all" : "_all_reduce");
}

// 8 ranks are more than some have kv heads: those have copies.
INSTANTIATE_TEST_SUITE_P(AllReduce, GoldenLogits,
                         testing::Combine(testing::ValuesIn(kFamilies), testing::Values(1, 2, 8),
                                          testing::Values(ExpertPath::kAllReduce)),
                         case_name);
INSTANTIATE_TEST_SUITE_P(AllToAll, GoldenLogits,
                         testing::Combine(testing::ValuesIn(kFamilies), testing::Values(2, 4),
                                          testing::Values(ExpertPath::kAllToAll)),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Stored, GoldenLogits,
                         testing::Combine(testing::Values("v3-tiny-bf16", "v3-tiny-fp8"),
                                          testing::Values(1, 4),
                                          testing::Values(ExpertPath::kAllReduce, ExpertPath::kAllToAll)),
                         case_name);

}  // namespace
}  // namespace duet
