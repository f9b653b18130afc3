#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "gemm_support.h"
#include "kernels/ref/gemm.h"

namespace duet {
namespace {

using test::StoredWeights;
using test::TestContext;

struct Case {
  CpuLevel level;
  DType dtype;
  Rounding rounding;
};

std::string name_of(const Case& c) {
  const char* roundings[] = {"exact", "bf16", "f16"};
  return std::string(to_string(c.level)) + '_' + to_string(c.dtype) + '_' +
         roundings[static_cast<int>(c.rounding)];
}

void PrintTo(const Case& c, std::ostream* out) {
  *out << name_of(c);
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const CpuLevel level : available_cpu_levels()) {
    for (const DType dtype : test::packable_types()) {
      for (const Rounding rounding : test::all_roundings()) cases.push_back({level, dtype, rounding});
    }
  }
  return cases;
}

class Gemm : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(All, Gemm, testing::ValuesIn(all_cases()),
                         [](const auto& i) { return name_of(i.param); });

/// |computed − exact| ≤ roundings · u · Σ|a·w|: a product meets those of its chain (16 steps, 64 with bf16
/// or f16 weights, two each without FMA; 64 pairs with vdpbf16ps, 512 with tdpbf16ps), of its block's sum (32
/// chains) and of the sum of blocks. Both also flush subnormals, far below the small constant.
double bound(const Case& p, ConstRows a, const WeightView& w, int64_t m, int64_t n, double c0) {
  double sum = std::fabs(c0);
  for (int64_t k = 0; k < a.cols; ++k) {
    sum +=
        std::fabs(static_cast<double>(round_to(a.row(m)[k], p.rounding)) * ref::weight_at(w, n, k, p.dtype));
  }
  const bool tiles = p.level == CpuLevel::kAmx && p.dtype == DType::kBf16 && p.rounding == Rounding::kBf16;
  const int64_t chain = tiles ? 1024 : p.dtype == DType::kF32 ? 32 : 128;
  const int64_t roundings =
      std::min(2 * a.cols, chain) + std::min<int64_t>(a.cols / 16, 32) + a.cols / 512 + 3;
  return static_cast<double>(roundings) * 0x1p-24 * sum + 1e-30;
}

void expect_close(const Case& p, int64_t m, int64_t n, int64_t k, Accumulate accumulate, bool transposed) {
  const int64_t stride_a = k + 3;
  const int64_t stride_c = n + 5;
  const std::vector<float> a = test::random_floats(m * stride_a + 1, 11);
  const std::vector<float> start = test::random_floats(m * stride_c + 1, 12);
  const StoredWeights w(n, k, p.dtype == DType::kF32 ? DType::kF32 : DType::kBf16, 13, transposed);
  const PackedMatrix packed(w.view, p.dtype);
  std::vector<float> got = start;
  std::vector<float> want = start;
  const ConstRows rows(a.data(), m, k, stride_a);
  TestContext t(p.level, 1, gemm_scratch_bytes(m, n, k, 1), p.rounding);
  gemm(t.cx, rows, packed.view(), Rows(got.data(), m, n, stride_c), accumulate);
  ref::gemm(p.rounding, rows, w.view, p.dtype, Rows(want.data(), m, n, stride_c), accumulate);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < stride_c; ++j) {
      const size_t at = static_cast<size_t>(i * stride_c + j);
      if (j >= n) {
        ASSERT_EQ(got[at], start[at]) << "wrote beyond column " << n;
        continue;
      }
      const double c0 = accumulate == Accumulate::kYes ? start[at] : 0.0;
      ASSERT_NEAR(got[at], want[at], bound(p, rows, w.view, i, j, c0))
          << m << 'x' << n << 'x' << k << " at " << i << ',' << j;
    }
  }
}

TEST_P(Gemm, MatchesTheOracle) {
  struct Shape {
    int64_t m, n, k;
  };
  // Every remainder of tiles, panels, pairs and K blocks (512 words).
  for (const Shape s : {Shape{1, 1, 1},
                        {1, 16, 2},
                        {2, 17, 3},
                        {3, 64, 31},
                        {4, 70, 64},
                        {5, 33, 65},
                        {7, 15, 129},
                        {12, 32, 16},
                        {13, 100, 40},
                        {25, 48, 511},
                        {6, 31, 1025},
                        {1, 90, 1537},
                        {193, 20, 9}}) {
    expect_close(GetParam(), s.m, s.n, s.k, Accumulate::kNo, false);
    expect_close(GetParam(), s.m, s.n, s.k, Accumulate::kYes, true);
  }
}

TEST_P(Gemm, EmptyShapes) {
  const Case p = GetParam();
  for (const Accumulate accumulate : {Accumulate::kNo, Accumulate::kYes}) {
    const StoredWeights no_k(20, 0, p.dtype, 1);
    const PackedMatrix packed(no_k.view, p.dtype);
    std::vector<float> c(60, 3.0f);
    TestContext t(p.level, 1, 1 << 16, p.rounding);
    gemm(t.cx, ConstRows(nullptr, 3, 0, 0), packed.view(), Rows(c.data(), 3, 20, 20), accumulate);
    for (const float v : c) EXPECT_EQ(v, accumulate == Accumulate::kYes ? 3.0f : 0.0f);
    const StoredWeights no_n(0, 4, p.dtype, 1);
    const PackedMatrix empty(no_n.view, p.dtype);
    const std::vector<float> a(12, 1.0f);
    gemm(t.cx, ConstRows(a.data(), 3, 4, 4), empty.view(), Rows(nullptr, 3, 0, 0), accumulate);
    const PackedMatrix some(StoredWeights(5, 4, p.dtype, 1).view, p.dtype);
    gemm(t.cx, ConstRows(nullptr, 0, 4, 4), some.view(), Rows(nullptr, 0, 5, 5), accumulate);
  }
}

/// All rows one at a time: what every other way must reproduce bit for bit.
std::vector<float> row_by_row(const Case& p, ConstRows a, const PackedView& w,
                              const std::vector<float>& start, Accumulate accumulate) {
  std::vector<float> c = start;
  TestContext t(p.level, 1, gemm_scratch_bytes(1, w.n, w.k, 1), p.rounding);
  for (int64_t m = 0; m < a.rows; ++m) {
    gemm(t.cx, a.row_slice(m, 1), w, Rows(c.data() + m * w.n, 1, w.n, w.n), accumulate);
  }
  return c;
}

TEST_P(Gemm, RowsDoNotDependOnTheBatchOrTheThreads) {
  const Case p = GetParam();
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{150, 77}, {37, 1101}, {300, 514}}) {
    constexpr int64_t kMost = 300;
    const std::vector<float> a = test::random_floats(kMost * k, 21);
    const std::vector<float> start = test::random_floats(kMost * n, 22);
    const PackedMatrix packed(StoredWeights(n, k, p.dtype, 23).view, p.dtype);
    const Accumulate accumulate = n == 37 ? Accumulate::kYes : Accumulate::kNo;
    const std::vector<float> want =
        row_by_row(p, ConstRows(a.data(), kMost, k, k), packed.view(), start, accumulate);
    for (int threads = 1; threads <= 3; ++threads) {
      TestContext t(p.level, threads, gemm_scratch_bytes(kMost, n, k, threads), p.rounding);
      std::vector<int64_t> sizes = {64, 97, 300};
      for (int64_t m = 1; m <= 20; ++m) sizes.push_back(m);
      for (const int64_t m : sizes) {
        std::vector<float> c = start;
        gemm(t.cx, ConstRows(a.data(), m, k, k), packed.view(), Rows(c.data(), m, n, n), accumulate);
        ASSERT_TRUE(test::same_bits(c.data(), want.data(), m * n))
            << m << 'x' << n << 'x' << k << ", " << threads;
        ASSERT_EQ(t.arena.used(), 0u);
      }
    }
  }
}

TEST_P(Gemm, ColumnsDoNotDependOnN) {
  const Case p = GetParam();
  constexpr int64_t kN = 130;
  constexpr int64_t kK = 530;
  const StoredWeights w(kN, kK, p.dtype, 31);
  for (const int64_t m : {1, 3, 12, 29}) {
    const std::vector<float> a = test::random_floats(m * kK, 32);
    TestContext t(p.level, 1, gemm_scratch_bytes(m, kN, kK, 1), p.rounding);
    std::vector<float> want(static_cast<size_t>(m * kN));
    gemm(t.cx, ConstRows(a.data(), m, kK, kK), PackedMatrix(w.view, p.dtype).view(),
         Rows(want.data(), m, kN, kN));
    for (const int64_t n : {1, 16, 31, 65}) {
      WeightView some = w.view;
      some.rows = n;
      std::vector<float> c(static_cast<size_t>(m * n));
      gemm(t.cx, ConstRows(a.data(), m, kK, kK), PackedMatrix(some, p.dtype).view(), Rows(c.data(), m, n, n));
      for (int64_t i = 0; i < m; ++i) ASSERT_TRUE(test::same_bits(c.data() + i * n, want.data() + i * kN, n));
    }
  }
}

TEST_P(Gemm, SingleIsTheSame) {
  const Case p = GetParam();
  constexpr int64_t kM = 33;
  constexpr int64_t kN = 50;
  constexpr int64_t kK = 140;
  const std::vector<float> a = test::random_floats(kM * kK, 41);
  const PackedMatrix packed(StoredWeights(kN, kK, p.dtype, 42).view, p.dtype);
  std::vector<float> want(kM * kN);
  std::vector<float> got(kM * kN);
  TestContext t(p.level, 1, gemm_scratch_bytes(kM, kN, kK, 1), p.rounding);
  gemm(t.cx, ConstRows(a.data(), kM, kK, kK), packed.view(), Rows(want.data(), kM, kN, kN));
  AlignedBuffer scratch(gemm_scratch_bytes(kM, kN, kK, 1));
  gemm_single(p.level, p.rounding, ConstRows(a.data(), kM, kK, kK), packed.view(),
              Rows(got.data(), kM, kN, kN), Accumulate::kNo, scratch.data());
  EXPECT_TRUE(test::same_bits(got.data(), want.data(), kM * kN));
}

/// The contract in a few lines of code: one multiply-add per k, ascending, fused at every level that has
/// the instruction; short chains from zero, summed by blocks, which are added to c (or to nothing) in order.
/// AMX has a chain of even k and one of odd k in every tile.
TEST_P(Gemm, AddsShortChainsInOrder) {
  const Case p = GetParam();
  const bool dot = p.dtype == DType::kBf16 && p.rounding == Rounding::kBf16;
  if (dot && p.level == CpuLevel::kAvx512Bf16) GTEST_SKIP() << "vdpbf16ps adds two products at a time";
  const bool tiles = dot && p.level == CpuLevel::kAmx;
  const bool fused = p.level != CpuLevel::kPortable;
  constexpr int64_t kM = 14;
  constexpr int64_t kN = 35;
  constexpr int64_t kK = 1195;
  const int64_t block_k = tiles ? 1024 : 512;
  const int64_t chain_steps = tiles ? 32 : p.dtype == DType::kF32 ? 16 : 64;
  const std::vector<float> a = test::random_floats(kM * kK, 51);
  const std::vector<float> start = test::random_floats(kM * kN, 52);
  const StoredWeights w(kN, kK, p.dtype, 53);
  TestContext t(p.level, 1, gemm_scratch_bytes(kM, kN, kK, 1), p.rounding);
  const auto expected = [&](int64_t m, int64_t n, float sum) {
    for (int64_t first = 0; first < kK; first += block_k) {
      const int64_t end = std::min(kK, first + block_k);
      float block = 0.0f;
      for (int64_t from = first; from < end; from += chain_steps) {
        float chain = 0.0f, odd = 0.0f;
        for (int64_t k = from; k < std::min(end, from + chain_steps); ++k) {
          const float x = round_to(a[static_cast<size_t>(m * kK + k)], p.rounding);
          const float y = ref::weight_at(w.view, n, k, p.dtype);
          float& to = tiles && k % 2 != 0 ? odd : chain;
          to = fused ? std::fma(x, y, to) : to + x * y;
        }
        block = block + (tiles ? chain + odd : chain);
      }
      sum = sum + block;
    }
    return sum;
  };
  for (const int64_t rows : {int64_t{1}, kM}) {  // few rows take other tiles and another loop order
    for (const Accumulate accumulate : {Accumulate::kNo, Accumulate::kYes}) {
      std::vector<float> got = start;
      gemm(t.cx, ConstRows(a.data(), rows, kK, kK), PackedMatrix(w.view, p.dtype).view(),
           Rows(got.data(), rows, kN, kN), accumulate);
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t n = 0; n < kN; ++n) {
          const auto at = static_cast<size_t>(m * kN + n);
          ASSERT_EQ(got[at], expected(m, n, accumulate == Accumulate::kYes ? start[at] : 0.0f))
              << rows << " rows: " << m << ',' << n;
        }
      }
    }
  }
}

TEST_P(Gemm, NanAndInfinityStayInTheirRow) {
  const Case p = GetParam();
  constexpr int64_t kM = 8;
  constexpr int64_t kN = 20;
  constexpr int64_t kK = 33;
  std::vector<float> a = test::random_floats(kM * kK, 61);
  a[2 * kK + 32] = std::numeric_limits<float>::quiet_NaN();
  a[5 * kK + 1] = std::numeric_limits<float>::infinity();
  const PackedMatrix packed(StoredWeights(kN, kK, p.dtype, 62).view, p.dtype);
  std::vector<float> c(kM * kN);
  TestContext t(p.level, 1, gemm_scratch_bytes(kM, kN, kK, 1), p.rounding);
  gemm(t.cx, ConstRows(a.data(), kM, kK, kK), packed.view(), Rows(c.data(), kM, kN, kN));
  for (int64_t m = 0; m < kM; ++m) {
    for (int64_t n = 0; n < kN; ++n) {
      const float v = c[static_cast<size_t>(m * kN + n)];
      if (m == 2) {
        EXPECT_TRUE(std::isnan(v));
      } else if (m == 5) {
        EXPECT_TRUE(std::isinf(v));
      } else {
        EXPECT_TRUE(std::isfinite(v));
      }
    }
  }
}

TEST(GemmScratch, DoesNotGrowWithTheBatch) {
  EXPECT_EQ(gemm_scratch_bytes(1 << 20, 4096, 4096, 2), gemm_scratch_bytes(4096, 4096, 4096, 2));
  EXPECT_LT(gemm_scratch_bytes(1, 4096, 4096, 2), gemm_scratch_bytes(64, 4096, 4096, 2));
}

}  // namespace
}  // namespace duet
