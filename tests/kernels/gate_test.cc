#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/gemm_support.h"
#include "kernels/ref/row_ops.h"

namespace duet {
namespace {

struct GateCase {
  GateParams params;
  float bias_size = 0.0f;
};

const GateCase kCases[] = {
    {{GateScore::kSoftmax, GateMethod::kGreedy, 64, 6, 1, 1, false, 1.0f}},
    {{GateScore::kSoftmax, GateMethod::kGreedy, 7, 7, 1, 1, true, 2.5f}},
    {{GateScore::kSoftmax, GateMethod::kGroupMax, 160, 6, 8, 3, false, 16.0f}},
    {{GateScore::kSoftmax, GateMethod::kGroupMax, 12, 4, 3, 1, true, 1.0f}},
    {{GateScore::kSigmoid, GateMethod::kNoAuxTc, 256, 8, 8, 4, true, 2.5f}, 0.3f},
    {{GateScore::kSigmoid, GateMethod::kNoAuxTc, 12, 3, 3, 2, true, 1.5f}, 0.3f},
    {{GateScore::kSigmoid, GateMethod::kNoAuxTc, 12, 5, 3, 1, false, 1.0f}, 2.0f},  // biased below zero
    {{GateScore::kSigmoid, GateMethod::kNoAuxTc, 5, 2, 5, 4, true, 1.0f}, 0.3f},    // groups of one
    {{GateScore::kSigmoid, GateMethod::kNoAuxTc, 16, 4, 1, 1, true, 1.0f}},         // no bias
    {{GateScore::kSigmoid, GateMethod::kNoAuxTc, 1040, 8, 8, 4, true, 2.5f}, 0.3f},
    {{GateScore::kSoftmax, GateMethod::kGreedy, 1, 1, 1, 1, true, 1.0f}},
};

TEST(Gate, MatchesTheOracle) {
  const int64_t tokens = 60;
  for (const CpuLevel level : available_cpu_levels()) {
    test::TestContext two(level, 2, 0);
    for (const GateCase& c : kCases) {
      const GateParams& p = c.params;
      const auto logits = test::random_floats(tokens * p.experts, 5, 6.0f);
      const auto bias = test::random_floats(c.bias_size > 0 ? p.experts : 0, 6, c.bias_size);
      const auto n = static_cast<size_t>(tokens * p.top_k);
      std::vector<int32_t> ids(n), want_ids(n);
      std::vector<float> weights(n), want(n);
      gate_top_k(two.cx, {logits.data(), tokens, p.experts}, p, bias, ids.data(), weights.data());
      ref::gate_top_k({logits.data(), tokens, p.experts}, p, bias, want_ids.data(), want.data());
      EXPECT_EQ(ids, want_ids) << to_string(level) << " experts " << p.experts;
      for (size_t i = 0; i < n; ++i) {
        // exp to 2e-7, sums of positive terms, two divisions.
        EXPECT_NEAR(weights[i], want[i], 1e-6f * std::abs(want[i]) + 1e-30f) << to_string(level) << " " << i;
        const bool first = i % static_cast<size_t>(p.top_k) == 0;
        EXPECT_TRUE(first || ids[i - 1] < ids[i]);
      }
    }
  }
}

/// One token through the gate at the best level.
struct Choice {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};
Choice choose(const std::vector<float>& logits, GateParams p, const std::vector<float>& bias = {}) {
  p.experts = static_cast<int>(logits.size());
  Choice c{std::vector<int32_t>(static_cast<size_t>(p.top_k)),
           std::vector<float>(static_cast<size_t>(p.top_k))};
  gate_top_k(KernelContext{available_cpu_levels().back()}, {logits.data(), 1, p.experts}, p, bias,
             c.ids.data(), c.weights.data());
  return c;
}

TEST(Gate, TiesGoToTheLowerIndex) {
  const Choice c = choose({1, 2, 2, 1, 2, 2}, {.top_k = 3});
  EXPECT_EQ(c.ids, (std::vector<int32_t>{1, 2, 4}));
  const Choice groups =
      choose({1, 1, 1, 1, 1, 1}, {.method = GateMethod::kGroupMax, .top_k = 2, .groups = 3});
  EXPECT_EQ(groups.ids, (std::vector<int32_t>{0, 1}));
}

TEST(Gate, BiasSteersTheChoiceAndNotTheWeight) {
  const GateParams p{.score = GateScore::kSigmoid, .method = GateMethod::kNoAuxTc, .top_k = 1};
  const Choice c = choose({3, 0, -1}, p, {0, 0, 5});
  EXPECT_EQ(c.ids[0], 2);
  EXPECT_NEAR(c.weights[0], 1.0 / (1.0 + std::exp(1.0)), 1e-7);
}

/// Hugging Face fills masked groups with 0, so they beat an expert whose biased score is negative.
TEST(Gate, MaskedGroupsTakePartWithZero) {
  const GateParams v3{.score = GateScore::kSigmoid, .method = GateMethod::kNoAuxTc, .top_k = 2, .groups = 2};
  const Choice c = choose({4, -4, 1, 1}, v3, {5, -2, 0, 0});  // group 0 is kept; expert 1 is at −1.98
  EXPECT_EQ(c.ids, (std::vector<int32_t>{0, 2}));
  EXPECT_NEAR(c.weights[1], 1.0 / (1.0 + std::exp(-1.0)), 1e-7);
  // V2 takes weights after the mask: more experts wanted than the kept group holds gives zeros.
  const GateParams v2{.method = GateMethod::kGroupMax, .top_k = 3, .groups = 2};
  const Choice d = choose({4, -4, 1, 1}, v2);
  EXPECT_EQ(d.ids, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_GT(d.weights[0], 0.8f);
  EXPECT_EQ(d.weights[2], 0.0f);
}

TEST(Gate, NormalisesThenScales) {
  GateParams p{.top_k = 2, .normalize = true, .scaling = 3.0f};
  const Choice c = choose({1, 1, -50}, p);
  EXPECT_FLOAT_EQ(c.weights[0], 1.5f);
  p.normalize = false;
  EXPECT_FLOAT_EQ(choose({1, 1, -50}, p).weights[0], 1.5f);
  p.top_k = 1;
  p.normalize = true;
  EXPECT_FLOAT_EQ(choose({1, 1, -50}, p).weights[0], 3.0f);
}

TEST(Gate, NonFiniteLogitsStillGiveValidIds) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (const GateMethod method : {GateMethod::kGreedy, GateMethod::kGroupMax, GateMethod::kNoAuxTc}) {
    for (const std::vector<float>& logits : {std::vector<float>{nan, nan, nan, nan},
                                             {inf, -inf, nan, 0},
                                             {-inf, -inf, -inf, -inf},
                                             {1e38f, -1e38f, 0, 500}}) {
      for (const GateScore score : {GateScore::kSoftmax, GateScore::kSigmoid}) {
        const Choice c = choose(logits, {.score = score, .method = method, .top_k = 3, .groups = 2});
        EXPECT_TRUE(0 <= c.ids[0] && c.ids[0] < c.ids[1] && c.ids[1] < c.ids[2] && c.ids[2] < 4);
      }
    }
  }
}

}  // namespace
}  // namespace duet
