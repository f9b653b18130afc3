#include <gtest/gtest.h>

#include <algorithm>

#include "gemm_support.h"
#include "kernels/ref/gemm.h"

namespace duet {
namespace {

using test::StoredWeights;
using test::TestContext;

struct Mlp {
  Mlp(int64_t hidden, int64_t intermediate, DType stored, DType dtype, uint32_t seed)
      : gate(intermediate, hidden, stored, seed, false, 0.3f),
        up(intermediate, hidden, stored, seed + 1, true, 0.3f),
        down(hidden, intermediate, stored, seed + 2, false, 0.3f),
        packed(pack_mlp(gate.view, up.view, down.view, dtype)) {}
  StoredWeights gate, up, down;
  MlpWeights packed;
};

/// Two roundings of an intermediate value to the same type may differ by one unit; the rest is
/// float32 noise. Relative to the largest output (all inputs are of one size).
double tolerance(Rounding rounding, const std::vector<float>& want) {
  float most = 0;
  for (const float v : want) most = std::max(most, std::fabs(v));
  const double unit = rounding == Rounding::kBf16 ? 0x1p-8 : rounding == Rounding::kF16 ? 0x1p-11 : 0x1p-18;
  return unit * most + 1e-20;
}

struct Level {
  CpuLevel value;
};
void PrintTo(const Level& l, std::ostream* out) {
  *out << to_string(l.value);
}

std::vector<Level> all_levels() {
  std::vector<Level> levels;
  for (const CpuLevel level : available_cpu_levels()) levels.push_back({level});
  return levels;
}

class MlpTest : public testing::TestWithParam<Level> {};
INSTANTIATE_TEST_SUITE_P(Levels, MlpTest, testing::ValuesIn(all_levels()),
                         [](const auto& i) { return std::string(to_string(i.param.value)); });

TEST_P(MlpTest, MatchesTheOracle) {
  struct Shape {
    int64_t tokens, hidden, intermediate;
  };
  for (const DType dtype : test::packable_types()) {
    for (const Rounding rounding : test::all_roundings()) {
      for (const Shape s : {Shape{1, 16, 16}, {3, 40, 23}, {14, 33, 70}, {30, 64, 513}, {200, 24, 9}}) {
        const Mlp w(s.hidden, s.intermediate, DType::kF32, dtype, 5);
        const std::vector<float> x = test::random_floats(s.tokens * s.hidden, 6);
        const std::vector<float> start = test::random_floats(s.tokens * s.hidden, 7);
        const ConstRows rows(x.data(), s.tokens, s.hidden, s.hidden);
        TestContext t(GetParam().value, 2, mlp_scratch_bytes(s.hidden, s.intermediate, 2), rounding);
        for (const Accumulate accumulate : {Accumulate::kNo, Accumulate::kYes}) {
          std::vector<float> got = start;
          std::vector<float> want = start;
          mlp(t.cx, rows, w.packed, Rows(got.data(), s.tokens, s.hidden, s.hidden), accumulate);
          ref::mlp(rounding, rows, w.gate.view, w.up.view, w.down.view, dtype,
                   Rows(want.data(), s.tokens, s.hidden, s.hidden), accumulate);
          const double slack = tolerance(rounding, want);
          for (size_t i = 0; i < got.size(); ++i)
            ASSERT_NEAR(got[i], want[i], slack) << i << " of " << s.hidden;
        }
      }
    }
  }
}

/// Gate and up of one hidden unit with weights 1: mlp returns silu(x) · x to float32's precision.
TEST_P(MlpTest, SiluIsAccurateEverywhere) {
  std::vector<float> x;
  for (float g = -120.0f; g < 120.0f; g += 0.0137f) x.push_back(g);
  for (const float g : {0.0f, -0.0f, 1e-30f, -1e-30f, 3e38f, -3e38f, -87.5f, -103.0f, 88.8f}) x.push_back(g);
  const float one = 1.0f;
  const WeightView w{&one, DType::kF32, 1, 1, 1, 1};
  const MlpWeights packed = pack_mlp(w, w, w, DType::kF32);
  const auto tokens = static_cast<int64_t>(x.size());
  std::vector<float> out(x.size());
  TestContext t(GetParam().value, 1, mlp_scratch_bytes(1, 1, 1));
  mlp(t.cx, ConstRows(x.data(), tokens, 1, 1), packed, Rows(out.data(), tokens, 1, 1));
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = ref::silu(x[i]) * x[i];
    if (!(std::fabs(want) < 3e38)) {
      EXPECT_TRUE(std::isinf(out[i]));
      continue;
    }
    // 2 ulp of e^x, 1 each of the sum, product, quotient, product; a subnormal e^x is off by up to one
    // step of 2^-149, which is then multiplied by x².
    const double step = (static_cast<double>(x[i]) * x[i] + 2) * 0x1p-149;
    EXPECT_NEAR(out[i], want, 6 * 0x1p-24 * std::fabs(want) + (x[i] < -87 ? step : 0x1p-148))
        << "x = " << x[i];
  }
}

TEST_P(MlpTest, RowsDoNotDependOnTheBatchOrTheThreads) {
  constexpr int64_t kHidden = 72;
  constexpr int64_t kInner = 600;
  constexpr int64_t kMost = 400;
  for (const auto& [dtype, rounding] : {std::pair{DType::kF32, Rounding::kNone},
                                        {DType::kBf16, Rounding::kBf16},
                                        {DType::kF16, Rounding::kF16}}) {
    const Mlp w(kHidden, kInner, dtype, dtype, 9);
    const std::vector<float> x = test::random_floats(kMost * kHidden, 10);
    std::vector<float> want(x.size());
    TestContext alone(GetParam().value, 1, mlp_scratch_bytes(kHidden, kInner, 1), rounding);
    for (int64_t r = 0; r < kMost; ++r) {
      mlp(alone.cx, ConstRows(x.data() + r * kHidden, 1, kHidden, kHidden), w.packed,
          Rows(want.data() + r * kHidden, 1, kHidden, kHidden));
    }
    for (int threads = 1; threads <= 3; ++threads) {
      TestContext t(GetParam().value, threads, mlp_scratch_bytes(kHidden, kInner, threads), rounding);
      for (const int64_t m : {1, 2, 5, 12, 13, 64, 193, 400}) {
        std::vector<float> out(static_cast<size_t>(m * kHidden));
        mlp(t.cx, ConstRows(x.data(), m, kHidden, kHidden), w.packed, Rows(out.data(), m, kHidden, kHidden));
        ASSERT_TRUE(test::same_bits(out.data(), want.data(), m * kHidden))
            << m << " rows, " << threads << " threads";
      }
    }
  }
}

TEST_P(MlpTest, AnEmptySliceContributesNothing) {
  const StoredWeights none(0, 8, DType::kF32, 1);
  const StoredWeights no_k(8, 0, DType::kF32, 1);
  const MlpWeights w = pack_mlp(none.view, none.view, no_k.view, DType::kBf16);
  EXPECT_EQ(w.hidden, 8);
  const std::vector<float> x(16, 1.0f);
  std::vector<float> out(16, 2.0f);
  TestContext t(GetParam().value, 1, mlp_scratch_bytes(8, 0, 1));
  mlp(t.cx, ConstRows(x.data(), 2, 8, 8), w, Rows(out.data(), 2, 8, 8), Accumulate::kYes);
  EXPECT_EQ(out, std::vector<float>(16, 2.0f));
  mlp(t.cx, ConstRows(x.data(), 2, 8, 8), w, Rows(out.data(), 2, 8, 8));
  EXPECT_EQ(out, std::vector<float>(16, 0.0f));
}

TEST(GroupByExpert, SortsAndSkips) {
  const int32_t ids[] = {4, 7, -1, 5, 4, 3, 6, 4};
  const float weights[] = {.1f, .2f, .3f, .4f, .5f, .6f, .7f, .8f};
  int32_t offsets[4];
  int32_t rows[8];
  float sorted[8];
  const ExpertGroups g = group_by_expert(ids, weights, 4, 2, 4, 3, offsets, rows, sorted);
  EXPECT_EQ(std::vector<int32_t>(g.offsets.begin(), g.offsets.end()), (std::vector<int32_t>{0, 3, 4, 5}));
  EXPECT_EQ(std::vector<int32_t>(g.rows.begin(), g.rows.end()), (std::vector<int32_t>{0, 2, 3, 1, 3}));
  EXPECT_EQ(std::vector<float>(g.weights.begin(), g.weights.end()),
            (std::vector<float>{.1f, .5f, .8f, .4f, .7f}));
  EXPECT_EQ(group_by_expert(ids, weights, 0, 2, 0, 3, offsets, rows, sorted).rows.size(), 0u);
}

/// A batch with skewed routing: expert 1 gets most rows, expert 3 none, expert 4 is an empty slice.
struct Routing {
  Routing(int64_t tokens, int count) {
    std::mt19937 gen(77);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int j = 0; j < 2; ++j) {
        int32_t e = gen() % 4 == 0 ? static_cast<int32_t>(gen() % static_cast<uint32_t>(count)) : 1 + j;
        ids.push_back(e == 3 ? -1 : e);
        gates.push_back(static_cast<float>(gen() % 100) / 100.0f);
      }
    }
    offsets.resize(static_cast<size_t>(count) + 1);
    rows.resize(ids.size());
    weights.resize(ids.size());
  }
  ExpertGroups group(int64_t tokens, int count) {
    return group_by_expert(ids.data(), gates.data(), tokens, 2, 0, count, offsets.data(), rows.data(),
                           weights.data());
  }
  std::vector<int32_t> ids, offsets, rows;
  std::vector<float> gates, weights;
};

struct Experts {
  Experts(int64_t hidden, int64_t inner, int count, DType dtype) {
    for (int e = 0; e < count; ++e) {
      const int64_t size = e == 4 ? 0 : inner + 17 * (e % 2);  // sizes may differ
      all.push_back(
          std::make_unique<Mlp>(hidden, size, DType::kF32, dtype, 100 + 3 * static_cast<uint32_t>(e)));
      weights.push_back(std::move(all.back()->packed));
      views.push_back({all.back()->gate.view, all.back()->up.view, all.back()->down.view});
    }
  }
  std::vector<std::unique_ptr<Mlp>> all;
  std::vector<MlpWeights> weights;
  std::vector<ref::ExpertViews> views;
};

TEST_P(MlpTest, ExpertsMatchTheOracle) {
  constexpr int kExperts = 6;
  constexpr int64_t kHidden = 50;
  constexpr int64_t kInner = 30;
  for (const auto& [dtype, rounding] :
       {std::pair{DType::kF32, Rounding::kNone}, {DType::kBf16, Rounding::kBf16}}) {
    const Experts e(kHidden, kInner, kExperts, dtype);
    for (const int64_t tokens : {1, 7, 60, 450}) {
      Routing routing(tokens, kExperts);
      const ExpertGroups groups = routing.group(tokens, kExperts);
      const std::vector<float> x = test::random_floats(tokens * kHidden, 3);
      const std::vector<float> start = test::random_floats(tokens * kHidden, 4);
      std::vector<float> got = start;
      std::vector<float> want = start;
      const ConstRows rows(x.data(), tokens, kHidden, kHidden);
      TestContext t(GetParam().value, 2, experts_scratch_bytes(kHidden, kInner + 17, 2), rounding);
      experts(t.cx, rows, e.weights, groups, Rows(got.data(), tokens, kHidden, kHidden));
      ref::experts(rounding, rows, e.views, groups, dtype, Rows(want.data(), tokens, kHidden, kHidden));
      const double slack = tolerance(rounding, want);
      for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], slack);
    }
  }
}

/// out[row] = fma(weight, mlp_e(row), out[row]), experts ascending: said with mlp() itself.
TEST_P(MlpTest, ExpertsAreTheSumOfTheirMlpsBitForBit) {
  constexpr int kExperts = 6;
  constexpr int64_t kHidden = 90;
  constexpr int64_t kInner = 130;
  constexpr int64_t kTokens = 500;
  for (const auto& [dtype, rounding] :
       {std::pair{DType::kF32, Rounding::kNone}, {DType::kBf16, Rounding::kBf16}}) {
    const Experts e(kHidden, kInner, kExperts, dtype);
    Routing routing(kTokens, kExperts);
    const std::vector<float> x = test::random_floats(kTokens * kHidden, 3);
    const std::vector<float> start = test::random_floats(kTokens * kHidden, 4);
    std::vector<float> want = start;
    std::vector<float> y(kHidden);
    TestContext alone(GetParam().value, 1, mlp_scratch_bytes(kHidden, kInner + 17, 1), rounding);
    const ExpertGroups all = routing.group(kTokens, kExperts);
    for (size_t k = 0; k < kExperts; ++k) {
      for (auto i = static_cast<size_t>(all.offsets[k]); i < static_cast<size_t>(all.offsets[k + 1]); ++i) {
        if (e.weights[k].intermediate == 0) continue;
        const int64_t row = all.rows[i];
        mlp(alone.cx, ConstRows(x.data() + row * kHidden, 1, kHidden, kHidden), e.weights[k],
            Rows(y.data(), 1, kHidden, kHidden));
        for (int64_t c = 0; c < kHidden; ++c) {
          float& to = want[static_cast<size_t>(row * kHidden + c)];
          to = std::fma(all.weights[i], y[static_cast<size_t>(c)], to);
        }
      }
    }
    for (int threads = 1; threads <= 3; ++threads) {
      TestContext t(GetParam().value, threads, experts_scratch_bytes(kHidden, kInner + 17, threads),
                    rounding);
      for (const int64_t tokens : {3, 40, 500}) {
        std::vector<float> got(start.begin(), start.begin() + tokens * kHidden);
        experts(t.cx, ConstRows(x.data(), tokens, kHidden, kHidden), e.weights,
                routing.group(tokens, kExperts), Rows(got.data(), tokens, kHidden, kHidden));
        ASSERT_TRUE(test::same_bits(got.data(), want.data(), tokens * kHidden)) << tokens << ", " << threads;
      }
    }
  }
}

}  // namespace
}  // namespace duet
