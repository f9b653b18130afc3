// The 0.7 B shape on 16 thread ranks: overlap off equals on, bit for bit, on both expert paths.
#include <gtest/gtest.h>

#include <cstring>

#include "golden/harness.h"

namespace duet {
namespace {

class ManyRanks : public testing::TestWithParam<ExpertPath> {};

TEST_P(ManyRanks, SixteenRanksOfTheLargeShape) {
  RankOptions options;
  options.model = std::string(DUET_MODELS) + "/configs/deepseek-678m.json";
  options.load_format = LoadFormat::kDummy;
  options.dtype = ComputeDtype::kBfloat16;
  options.ranks = 16;
  options.threads_per_rank = 1;
  options.expert_path = GetParam();
  options.max_batched_tokens = 64;
  options.max_logits_rows = 64;
  options.max_model_len = 128;
  options.kv_cache_bytes = int64_t{8} << 20;
  options.max_micro_batches = 3;
  const auto group = RankGroup::start(options);
  const std::vector<std::vector<int32_t>> prompts{random_tokens(21, 32000, 1), random_tokens(19, 32000, 2)};
  const auto off = run_prompts(*group, prompts, {});
  for (int m : {2, 3}) {
    Cut cut;
    cut.micro_batches = m;
    cut.overlap = true;
    const auto on = run_prompts(*group, prompts, cut);
    for (size_t i = 0; i < off.size(); ++i) {
      ASSERT_EQ(off[i].size(), on[i].size());
      EXPECT_EQ(std::memcmp(off[i].data(), on[i].data(), off[i].size() * sizeof(float)), 0)
          << m << " micro-batches, prompt " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, ManyRanks, testing::Values(ExpertPath::kAllReduce, ExpertPath::kAllToAll),
                         [](const auto& path) {
                           return path.param == ExpertPath::kAllToAll ? "all_to_all" : "all_reduce";
                         });

}  // namespace
}  // namespace duet
