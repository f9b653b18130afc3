// Matrix products and feed-forward with 8-bit weights: fp8 with block scales, int8 weight-only, W8A8.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "kernels/ref/gemm.h"
#include "quant_support.h"

namespace duet {
namespace {

using test::QuantCase;
using test::QuantWeights;
using test::Scheme;
using test::TestContext;

class QuantGemm : public testing::TestWithParam<QuantCase> {};
INSTANTIATE_TEST_SUITE_P(All, QuantGemm, testing::ValuesIn(test::all_quant_cases()),
                         [](const auto& i) { return test::name_of(i.param); });

// Feed-forward weights are fp8 or W8A8.
class QuantFeedForward : public QuantGemm {};
std::vector<QuantCase> feed_forward_cases() {
  std::vector<QuantCase> cases = test::all_quant_cases();
  std::erase_if(cases, [](const QuantCase& c) { return c.scheme == Scheme::kW8A16; });
  return cases;
}
INSTANTIATE_TEST_SUITE_P(All, QuantFeedForward, testing::ValuesIn(feed_forward_cases()),
                         [](const auto& i) { return test::name_of(i.param); });

struct Shape {
  int64_t m, n, k;
};
// Every remainder of tiles, panels, quads, pieces, scale blocks and blocks of rows.
constexpr Shape kShapes[] = {{1, 1, 1},     {1, 16, 4},    {2, 17, 3},   {3, 64, 31},   {4, 70, 64},
                             {5, 33, 65},   {7, 15, 129},  {12, 32, 16}, {13, 100, 40}, {25, 48, 511},
                             {6, 31, 1025}, {1, 90, 1537}, {193, 20, 9}, {30, 40, 2100}};

TEST_P(QuantGemm, MatchesTheOracle) {
  const QuantCase p = GetParam();
  const PackAs as = test::pack_as(p.scheme);
  for (const Shape& s : kShapes) {
    for (const Accumulate accumulate : {Accumulate::kNo, Accumulate::kYes}) {
      const int64_t stride_a = s.k + 3, stride_c = s.n + 5;
      const std::vector<float> a = test::random_floats(s.m * stride_a + 1, 11);
      const std::vector<float> start = test::random_floats(s.m * stride_c + 1, 12);
      const QuantWeights w = test::make_weights(p.scheme, s.n, s.k, 13);
      const PackedMatrix packed(w.view, as);
      std::vector<float> got = start, want = start;
      const ConstRows rows(a.data(), s.m, s.k, stride_a);
      TestContext t(p.level, 1, gemm_scratch_bytes(s.m, s.n, s.k, 1), p.rounding);
      gemm(t.cx, rows, packed.view(), Rows(got.data(), s.m, s.n, stride_c), accumulate);
      ref::gemm(p.rounding, rows, w.view, as, Rows(want.data(), s.m, s.n, stride_c), accumulate);
      for (int64_t i = 0; i < s.m; ++i) {
        const std::vector<double> x = ref::input_row(rows.row(i), s.k, p.rounding, as.inputs);
        for (int64_t j = 0; j < stride_c; ++j) {
          const auto at = static_cast<size_t>(i * stride_c + j);
          if (j >= s.n) {
            ASSERT_EQ(got[at], start[at]) << "wrote beyond column " << s.n;
            continue;
          }
          // Roundings that a product meets: its chain (two per step without FMA; pairs twice as long), the
          // chains of its piece, the pieces; u each. W8A8 has those of the last three multiplications.
          const std::vector<double> row = ref::weight_row(w.view, j, as);
          double size = std::fabs(start[at]);
          for (size_t k = 0; k < x.size(); ++k) size += std::fabs(x[k] * row[k]);
          const double roundings = as.inputs == Inputs::kInt8 ? 5 : 2 * 64 + 16 + s.k / 12 + 4;
          ASSERT_NEAR(got[at], want[at], roundings * 0x1p-24 * size + 1e-30)
              << s.m << 'x' << s.n << 'x' << s.k << " at " << i << ',' << j;
        }
      }
    }
  }
}

TEST_P(QuantGemm, RowsDoNotDependOnTheBatchOrTheThreads) {
  const QuantCase p = GetParam();
  constexpr int64_t kMost = 300;
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{150, 77}, {37, 1101}, {300, 514}}) {
    const std::vector<float> a = test::random_floats(kMost * k, 21);
    const std::vector<float> start = test::random_floats(kMost * n, 22);
    const QuantWeights w = test::make_weights(p.scheme, n, k, 23);
    const PackedMatrix packed(w.view, test::pack_as(p.scheme));
    const Accumulate accumulate = n == 37 ? Accumulate::kYes : Accumulate::kNo;
    std::vector<float> want = start;
    for (int64_t m = 0; m < kMost; ++m) {
      TestContext t(p.level, 1, gemm_scratch_bytes(1, n, k, 1), p.rounding);
      gemm(t.cx, ConstRows(a.data() + m * k, 1, k, k), packed.view(), Rows(want.data() + m * n, 1, n, n),
           accumulate);
    }
    for (int threads = 1; threads <= 3; ++threads) {
      TestContext t(p.level, threads, gemm_scratch_bytes(kMost, n, k, threads), p.rounding);
      std::vector<int64_t> sizes = {64, 97, 300};
      for (int64_t m = 1; m <= 20; ++m) sizes.push_back(m);
      for (const int64_t m : sizes) {
        std::vector<float> c = start;
        gemm(t.cx, ConstRows(a.data(), m, k, k), packed.view(), Rows(c.data(), m, n, n), accumulate);
        ASSERT_TRUE(test::same_bits(c.data(), want.data(), m * n))
            << m << 'x' << n << 'x' << k << ", " << threads;
      }
    }
    std::vector<float> c = start;
    AlignedBuffer scratch(gemm_scratch_bytes(kMost, n, k, 1));
    gemm_single(p.level, p.rounding, ConstRows(a.data(), kMost, k, k), packed.view(),
                Rows(c.data(), kMost, n, n), accumulate, scratch.data());
    ASSERT_TRUE(test::same_bits(c.data(), want.data(), kMost * n));
  }
}

TEST_P(QuantGemm, NanAndInfinityStayInTheirRow) {
  const QuantCase p = GetParam();
  constexpr int64_t kM = 30, kN = 20, kK = 33;  // eight rows, and enough for tiles of many rows
  std::vector<float> a = test::random_floats(kM * kK, 61);
  a[2 * kK + 32] = std::numeric_limits<float>::quiet_NaN();
  a[5 * kK + 1] = std::numeric_limits<float>::infinity();
  std::fill_n(a.begin() + 6 * kK, kK, 0.0f);
  std::fill_n(a.begin() + 7 * kK, kK, 1e-42f);
  QuantWeights w = test::make_weights(p.scheme, kN, kK, 62);
  for (std::byte& b : w.bytes) {  // no zeros, so that 0 · inf can't hide behind them
    if ((b & std::byte{0x7f}) == std::byte{0}) b = std::byte{1};
  }
  const PackedMatrix packed(w.view, test::pack_as(p.scheme));
  for (const int64_t rows : {int64_t{8}, kM}) {
    std::vector<float> c(kM * kN, 3.0f);
    TestContext t(p.level, 1, gemm_scratch_bytes(rows, kN, kK, 1), p.rounding);
    gemm(t.cx, ConstRows(a.data(), rows, kK, kK), packed.view(), Rows(c.data(), rows, kN, kN));
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t n = 0; n < kN; ++n) {
        const float v = c[static_cast<size_t>(m * kN + n)];
        EXPECT_EQ(std::isfinite(v), m != 2 && m != 5) << m << ',' << n << " of " << rows;
        if (m == 6 || m == 7) {
          EXPECT_NEAR(v, 0.0f, 1e-38f);
        }
      }
    }
  }
}

TEST_P(QuantGemm, EmptyShapes) {
  const QuantCase p = GetParam();
  const PackAs as = test::pack_as(p.scheme);
  for (const Accumulate accumulate : {Accumulate::kNo, Accumulate::kYes}) {
    const PackedMatrix packed(test::make_weights(p.scheme, 20, 0, 1).view, as);
    std::vector<float> c(60, 3.0f);
    TestContext t(p.level, 1, 1 << 16, p.rounding);
    gemm(t.cx, ConstRows(nullptr, 3, 0, 0), packed.view(), Rows(c.data(), 3, 20, 20), accumulate);
    for (const float v : c) EXPECT_EQ(v, accumulate == Accumulate::kYes ? 3.0f : 0.0f);
    const PackedMatrix some(test::make_weights(p.scheme, 5, 4, 1).view, as);
    gemm(t.cx, ConstRows(nullptr, 0, 4, 4), some.view(), Rows(nullptr, 0, 5, 5), accumulate);
  }
}

/// The promise of W8A8, said with integers: any level, any shape, the same bits.
TEST(W8A8, IsExactIntegerArithmetic) {
  for (const CpuLevel level : available_cpu_levels()) {
    for (const Shape& s : kShapes) {
      const QuantWeights w = QuantWeights::int8(s.n, s.k, 3);
      std::vector<float> a = test::random_floats(s.m * s.k, 4);
      for (int64_t m = 0; m < s.m; ++m)
        a[static_cast<size_t>(m * s.k)] = m % 2 ? 2.0f : -2.0f;  // reaches ±127
      std::vector<float> c(static_cast<size_t>(s.m * s.n));
      TestContext t(level, 1, gemm_scratch_bytes(s.m, s.n, s.k, 1));
      gemm(t.cx, ConstRows(a.data(), s.m, s.k, s.k),
           PackedMatrix(w.view, PackAs(DType::kI8, Inputs::kInt8)).view(), Rows(c.data(), s.m, s.n, s.n));
      for (int64_t m = 0; m < s.m; ++m) {
        const float scale = 2.0f / 127.0f;
        for (int64_t n = 0; n < s.n; ++n) {
          int64_t sum = 0;
          for (int64_t k = 0; k < s.k; ++k) {
            const auto q =
                static_cast<int64_t>(std::nearbyint(a[static_cast<size_t>(m * s.k + k)] * (1.0f / scale)));
            sum += q * static_cast<int8_t>(w.bytes[static_cast<size_t>(n * s.k + k)]);
          }
          const float want = static_cast<float>(sum) * scale * w.scales[static_cast<size_t>(n)];
          ASSERT_EQ(c[static_cast<size_t>(m * s.n + n)], want) << to_string(level) << ' ' << m << ',' << n;
        }
      }
    }
  }
}

TEST(W8A8, LongRowsOfExtremesDoNotOverflow) {
  constexpr int64_t kK =
      70000;  // 127 · 128 · kK is beyond half of 2^31, the unsigned sums are beyond all of it
  const std::vector<float> a(kK, -1.0f);
  std::vector<int8_t> w(kK, -128);
  const float one = 1.0f;
  WeightView view{w.data(), DType::kI8, 1, kK, kK, 1, {}};
  view.scales.data = &one;
  const PackedMatrix packed(view, PackAs(DType::kI8, Inputs::kInt8));
  for (const CpuLevel level : available_cpu_levels()) {
    float c = 0.0f;
    TestContext t(level, 1, gemm_scratch_bytes(1, 1, kK, 1));
    gemm(t.cx, ConstRows(a.data(), 1, kK, kK), packed.view(), Rows(&c, 1, 1, 1));
    EXPECT_EQ(c, static_cast<float>(127ll * 128 * kK) * (1.0f / 127.0f)) << to_string(level);
  }
}

// ---- feed-forward -------------------------------------------------------------------------------

struct QuantMlp {
  QuantMlp(Scheme s, int64_t hidden, int64_t inner, uint32_t seed)
      : gate(test::make_weights(s, inner, hidden, seed)),
        up(test::make_weights(s, inner, hidden, seed + 1)),
        down(test::make_weights(s, hidden, inner, seed + 2)),
        packed(pack_mlp(gate.view, up.view, down.view, test::pack_as(s))) {}
  QuantWeights gate, up, down;
  MlpWeights packed;
};

TEST_P(QuantFeedForward, MatchesTheOracle) {
  const QuantCase p = GetParam();
  for (const Shape s : {Shape{1, 16, 16}, {3, 40, 23}, {14, 33, 70}, {30, 64, 513}, {200, 24, 9}}) {
    const QuantMlp w(p.scheme, s.n, s.k, 5);
    const std::vector<float> x = test::random_floats(s.m * s.n, 6);
    const std::vector<float> start = test::random_floats(s.m * s.n, 7);
    const ConstRows rows(x.data(), s.m, s.n, s.n);
    TestContext t(p.level, 2, mlp_scratch_bytes(s.n, s.k, 2), p.rounding);
    for (const Accumulate accumulate : {Accumulate::kNo, Accumulate::kYes}) {
      std::vector<float> got = start, want = start;
      mlp(t.cx, rows, w.packed, Rows(got.data(), s.m, s.n, s.n), accumulate);
      ref::mlp(p.rounding, rows, w.gate.view, w.up.view, w.down.view, test::pack_as(p.scheme),
               Rows(want.data(), s.m, s.n, s.n), accumulate);
      // An intermediate value that is rounded to another neighbour: a step of its type, or 1/127 of the
      // largest of its row, in one of the terms of a sum.
      double most = 0.0;
      for (const float v : want) most = std::max(most, std::fabs(static_cast<double>(v)));
      const double unit = p.scheme == Scheme::kW8A8       ? 0x1p-6
                          : p.rounding == Rounding::kBf16 ? 0x1p-8
                          : p.rounding == Rounding::kF16  ? 0x1p-11
                                                          : 0x1p-17;
      for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], unit * most + 1e-20) << i;
    }
  }
}

TEST_P(QuantFeedForward, RowsDoNotDependOnTheBatchOrTheThreads) {
  const QuantCase p = GetParam();
  constexpr int64_t kHidden = 72, kInner = 600, kMost = 400;
  const QuantMlp w(p.scheme, kHidden, kInner, 9);
  const std::vector<float> x = test::random_floats(kMost * kHidden, 10);
  std::vector<float> want(x.size());
  TestContext alone(p.level, 1, mlp_scratch_bytes(kHidden, kInner, 1), p.rounding);
  for (int64_t r = 0; r < kMost; ++r) {
    mlp(alone.cx, ConstRows(x.data() + r * kHidden, 1, kHidden, kHidden), w.packed,
        Rows(want.data() + r * kHidden, 1, kHidden, kHidden));
  }
  for (int threads = 1; threads <= 3; ++threads) {
    TestContext t(p.level, threads, mlp_scratch_bytes(kHidden, kInner, threads), p.rounding);
    for (const int64_t m : {1, 2, 5, 12, 13, 64, 193, 400}) {
      std::vector<float> out(static_cast<size_t>(m * kHidden));
      mlp(t.cx, ConstRows(x.data(), m, kHidden, kHidden), w.packed, Rows(out.data(), m, kHidden, kHidden));
      ASSERT_TRUE(test::same_bits(out.data(), want.data(), m * kHidden)) << m << " rows, " << threads;
    }
  }
}

/// out[row] = fma(weight, mlp_e(row), out[row]), experts ascending, of several formats: said with mlp().
TEST_P(QuantFeedForward, ExpertsAreTheSumOfTheirMlpsBitForBit) {
  const QuantCase p = GetParam();
  constexpr int kExperts = 4;
  constexpr int64_t kHidden = 90, kInner = 130, kTokens = 260;
  std::vector<std::unique_ptr<QuantMlp>> kept;
  std::vector<MlpWeights> weights;
  for (int e = 0; e < kExperts; ++e) {
    const Scheme scheme = e == 2 ? Scheme::kFp8 : p.scheme;
    kept.push_back(std::make_unique<QuantMlp>(scheme, kHidden, kInner, 40 + static_cast<uint32_t>(e)));
    weights.push_back(std::move(kept.back()->packed));
  }
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < kTokens * 2; ++i) ids.push_back(static_cast<int32_t>((i * i + i / 3) % kExperts));
  const std::vector<float> gates = test::random_floats(kTokens * 2, 8);
  std::vector<int32_t> offsets(kExperts + 1), rows(ids.size());
  std::vector<float> sorted(ids.size());
  const auto groups = [&](int64_t tokens) {
    return group_by_expert(ids.data(), gates.data(), tokens, 2, 0, kExperts, offsets.data(), rows.data(),
                           sorted.data());
  };
  const std::vector<float> x = test::random_floats(kTokens * kHidden, 3);
  std::vector<float> want(x.size(), 0.5f), y(kHidden);
  TestContext alone(p.level, 1, mlp_scratch_bytes(kHidden, kInner, 1), p.rounding);
  const ExpertGroups all = groups(kTokens);
  for (size_t e = 0; e < kExperts; ++e) {
    for (auto i = static_cast<size_t>(all.offsets[e]); i < static_cast<size_t>(all.offsets[e + 1]); ++i) {
      const int64_t row = all.rows[i];
      mlp(alone.cx, ConstRows(x.data() + row * kHidden, 1, kHidden, kHidden), weights[e],
          Rows(y.data(), 1, kHidden, kHidden));
      for (int64_t c = 0; c < kHidden; ++c) {
        float& to = want[static_cast<size_t>(row * kHidden + c)];
        to = std::fma(all.weights[i], y[static_cast<size_t>(c)], to);
      }
    }
  }
  for (int threads = 1; threads <= 3; ++threads) {
    TestContext t(p.level, threads, experts_scratch_bytes(kHidden, kInner, threads), p.rounding);
    for (const int64_t tokens : {int64_t{3}, int64_t{40}, kTokens}) {
      std::vector<float> got(static_cast<size_t>(tokens * kHidden), 0.5f);
      experts(t.cx, ConstRows(x.data(), tokens, kHidden, kHidden), weights, groups(tokens),
              Rows(got.data(), tokens, kHidden, kHidden));
      ASSERT_TRUE(test::same_bits(got.data(), want.data(), tokens * kHidden)) << tokens << ", " << threads;
    }
  }
}

}  // namespace
}  // namespace duet
