#include <gtest/gtest.h>

#include <cmath>

#include "kernels/gemm_support.h"
#include "kernels/ref/row_ops.h"

namespace duet {
namespace {

constexpr int64_t kSizes[] = {1, 3, 15, 16, 17, 63, 64, 100, 129, 1024, 2055};

TEST(RmsNorm, MatchesTheOracle) {
  for (const CpuLevel level : available_cpu_levels()) {
    const KernelContext cx{level};
    for (const int64_t n : kSizes) {
      const auto x = test::random_floats(3 * n, 1, 4.0f), weight = test::random_floats(n, 2, 2.0f);
      std::vector<float> got(x.size()), want(x.size());
      rms_norm(cx, {x.data(), 3, n}, weight, 1e-6f, {got.data(), 3, n});
      ref::rms_norm({x.data(), 3, n}, weight, 1e-6f, {want.data(), 3, n});
      for (size_t i = 0; i < got.size(); ++i) {
        // Computed in float64 and rounded once; next to a tie either neighbour may come out.
        const double bound = 1.001 * 0x1p-23;
        EXPECT_NEAR(got[i], want[i], std::abs(want[i]) * bound)
            << to_string(level) << " n " << n << " i " << i;
      }
    }
  }
}

TEST(RmsNorm, RowsDoNotMeet) {
  for (const CpuLevel level : available_cpu_levels()) {
    test::TestContext wide(level, 2, 0);
    const int64_t rows = 301, n = 331, stride = 340;
    auto x = test::random_floats(rows * stride, 3, 4.0f);
    const auto weight = test::random_floats(n, 4, 2.0f);
    std::vector<float> together(x.size(), -1.0f), alone(static_cast<size_t>(n));
    rms_norm(wide.cx, {x.data(), rows, n, stride}, weight, 1e-6f, {together.data(), rows, n, stride});
    for (int64_t r = 0; r < rows; r += 37) {
      rms_norm(KernelContext{level}, {x.data() + r * stride, 1, n}, weight, 1e-6f, {alone.data(), 1, n});
      EXPECT_TRUE(test::same_bits(alone.data(), together.data() + r * stride, n))
          << to_string(level) << " " << r;
      EXPECT_EQ(together[static_cast<size_t>(r * stride + n)], -1.0f);
    }
    rms_norm(wide.cx, {x.data(), rows, n, stride}, weight, 1e-6f, {x.data(), rows, n, stride});  // in place
    for (int64_t r = 0; r < rows; ++r) {
      EXPECT_TRUE(test::same_bits(x.data() + r * stride, together.data() + r * stride, n)) << r;
    }
  }
}

TEST(RmsNorm, ZeroRowStaysZero) {
  const std::vector<float> x(20, 0.0f), weight(20, 3.0f);
  std::vector<float> out(20, 1.0f);
  rms_norm(KernelContext{available_cpu_levels().back()}, {x.data(), 1, 20}, weight, 1e-6f,
           {out.data(), 1, 20});
  EXPECT_EQ(out, x);
}

}  // namespace
}  // namespace duet
