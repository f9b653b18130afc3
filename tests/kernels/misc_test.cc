#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/cpu/row_kernels.h"
#include "kernels/gemm_support.h"
#include "kernels/ref/row_ops.h"

namespace duet {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(AddRows, AddsInPlaceWithStrides) {
  for (const CpuLevel level : available_cpu_levels()) {
    test::TestContext two(level, 2, 0);
    for (const int64_t cols : {1, 16, 37, 700}) {
      const int64_t rows = 200, stride = cols + 3;
      const auto x = test::random_floats(rows * cols, 1);
      auto got = test::random_floats(rows * stride, 2);
      auto want = got;
      add_rows(two.cx, {x.data(), rows, cols}, {got.data(), rows, cols, stride});
      ref::add_rows({x.data(), rows, cols}, {want.data(), rows, cols, stride});
      EXPECT_TRUE(test::same_bits(got.data(), want.data(), rows * stride)) << to_string(level) << " " << cols;
    }
  }
}

TEST(Argmax, MatchesTheOracle) {
  for (const CpuLevel level : available_cpu_levels()) {
    const KernelContext cx{level};
    for (const int64_t n : {1, 2, 15, 16, 17, 33, 1000, 129280}) {
      auto v = test::random_floats(n, static_cast<uint32_t>(n));
      EXPECT_EQ(argmax(cx, v), ref::argmax(v));
      v[static_cast<size_t>(n - 1)] = 7.0f;
      EXPECT_EQ(argmax(cx, v), n - 1);
      v[static_cast<size_t>(n / 3)] = 7.0f;
      EXPECT_EQ(argmax(cx, v), n / 3) << "ties go to the lowest index";
      v[static_cast<size_t>(n / 2)] = kNan;
      EXPECT_EQ(argmax(cx, v), ref::argmax(v)) << "NaN never wins";
    }
    EXPECT_EQ(argmax(cx, {}), -1);
    EXPECT_EQ(argmax(cx, std::vector<float>(20, kNan)), -1);
    EXPECT_EQ(argmax(cx, std::vector<float>(20, -kInf)), 0);
    EXPECT_EQ(argmax(cx, std::vector<float>{kNan, -kInf, -0.0f, 0.0f}), 2);
  }
}

TEST(LogSoftmax, MatchesTheOracle) {
  for (const CpuLevel level : available_cpu_levels()) {
    const KernelContext cx{level};
    for (const int64_t n : {1, 7, 512, 513, 20000}) {
      auto v = test::random_floats(n, 3, 30.0f);
      std::vector<float> got(v.size()), want(v.size());
      log_softmax(cx, v, got);
      ref::log_softmax(v, want);
      // The sum carries exp's 2e-7; its logarithm turns that into an absolute error.
      for (size_t i = 0; i < v.size(); ++i) ASSERT_NEAR(got[i], want[i], 3e-7 + 0x1p-23 * std::abs(want[i]));
      log_softmax(cx, v, v);
      EXPECT_EQ(v, got);
    }
    std::vector<float> masked = {1.0f, -kInf, 1.0f};
    log_softmax(cx, masked, masked);
    EXPECT_EQ(masked[1], -kInf);
    EXPECT_NEAR(masked[0], -std::log(2.0), 1e-6);
  }
}

TEST(RowKernels, ExpIsCloseAndTheSameInEveryLane) {
  std::vector<float> x;
  for (float v = -88.0f; v < 88.4f; v += 0.0137f) x.push_back(v);
  for (const float v : {-kInf, kInf, kNan, 0.0f, -0.0f, -1000.0f, 1000.0f}) x.push_back(v);
  const auto n = static_cast<int64_t>(x.size());
  for (const CpuLevel level : available_cpu_levels()) {
    const RowKernels& kernels = row_kernels(level);
    std::vector<float> y(x.size());
    kernels.exp(x.data(), 0.0f, n, y.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const double exact = std::exp(static_cast<double>(x[i]));
      if (std::isnan(x[i])) {
        EXPECT_TRUE(std::isnan(y[i]));
      } else if (x[i] > 88.3f) {
        EXPECT_EQ(y[i], kInf) << x[i];
      } else if (x[i] < -87.33f) {
        EXPECT_EQ(y[i], 0.0f) << x[i];
      } else {
        EXPECT_NEAR(y[i] / exact, 1.0, 2.4e-7) << to_string(level) << " " << x[i];
      }
      float alone = 0.0f;
      kernels.exp(&x[i], 0.0f, 1, &alone);
      EXPECT_TRUE(test::same_bits(&alone, &y[i], 1));
    }
  }
}

TEST(RowKernels, PackingIsTheLayoutOfPackedViews) {
  for (const CpuLevel level : available_cpu_levels()) {
    const RowKernels& kernels = row_kernels(level);
    for (const int64_t n : {1, 9, 16, 31, 48}) {
      for (const int64_t k : {1, 2, 7, 16, 37, 64}) {
        const auto f = test::random_floats(n * k, 8);
        const WeightView by_row{f.data(), DType::kF32, n, k, k, 1};     // [n, k]
        const WeightView by_column{f.data(), DType::kF32, n, k, 1, n};  // stored [k, n]
        const auto padded = static_cast<size_t>((n + 15) / 16 * 16);
        std::vector<float> want(padded * static_cast<size_t>(k)), got(want.size());
        pack_into({&by_row, 1}, DType::kF32, want.data());
        for (int64_t first = 0; first < n; first += 16) {
          kernels.pack_columns(reinterpret_cast<const uint32_t*>(f.data() + first * k), k,
                               std::min<int64_t>(16, n - first), k,
                               reinterpret_cast<uint32_t*>(got.data() + first * k));
        }
        EXPECT_TRUE(test::same_bits(got.data(), want.data(), static_cast<int64_t>(want.size())))
            << n << " " << k;
        pack_into({&by_column, 1}, DType::kF32, want.data());
        kernels.pack_rows_f32(f.data(), n, k, n, got.data(), k * kPanelColumns);
        EXPECT_TRUE(test::same_bits(got.data(), want.data(), static_cast<int64_t>(want.size())))
            << n << " " << k;
        std::vector<uint16_t> half(f.size());
        f32_to_bf16(f.data(), reinterpret_cast<bf16_t*>(half.data()), f.size());
        std::vector<uint16_t> want_half(padded * static_cast<size_t>((k + 1) / 2 * 2)),
            got_half(want_half.size());
        pack_into({&by_column, 1}, DType::kBf16, want_half.data());
        kernels.pack_rows_bf16(half.data(), n, k, n, got_half.data(), (k + k % 2) * kPanelColumns);
        EXPECT_EQ(got_half, want_half) << to_string(level) << " " << n << " " << k;
      }
    }
  }
}

TEST(RowKernels, ProductsOfRowsWhereTheyLie) {
  constexpr int64_t kStride = 75, kColumn = 5;
  for (const CpuLevel level : available_cpu_levels()) {
    const RowKernels& kernels = row_kernels(level);
    for (const int64_t rows : {1, 2, 5, 8, 11, 16, 17}) {
      for (const int64_t steps : {1, 15, 16, 17, 50, 64}) {
        const auto a = test::random_floats(rows * kStride, 21), w = test::random_floats(64 * kStride, 22);
        const float* groups[4];  // in descending order in memory
        for (int64_t g = 0; g < 4; ++g) groups[g] = w.data() + (3 - g) * 16 * kStride;
        const std::byte* places[Streams::kPlaces];
        for (auto& place : places) place = reinterpret_cast<const std::byte*>(w.data());
        std::vector<float> c(static_cast<size_t>(rows * 20), 0.25f), alone(16);
        RowsProduct p;
        p.a = a.data();
        p.a_stride = p.w_stride = kStride;
        p.rows = rows;
        p.steps = steps;
        p.groups = groups;
        p.column = kColumn;
        p.c = c.data();
        p.ldc = 20;
        p.load_c = true;
        p.ahead = {places, 0, 40};
        kernels.multiply_rows(p);
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t j = 0; j < 16; ++j) {
            double sum = 0.25;
            for (int64_t s = 0; s < steps; ++s) {
              sum += static_cast<double>(a[static_cast<size_t>(r * kStride + s)]) *
                     groups[s / 16][s % 16 * kStride + kColumn + j];
            }
            ASSERT_NEAR(c[static_cast<size_t>(r * 20 + j)], sum, 1e-4)
                << to_string(level) << rows << " " << steps;
          }
          for (int64_t j = 16; j < 20; ++j) ASSERT_EQ(c[static_cast<size_t>(r * 20 + j)], 0.25f);
          // A row by itself has the same bits.
          RowsProduct one = p;
          one.a = a.data() + r * kStride;
          one.rows = 1;
          one.c = alone.data();
          std::fill(alone.begin(), alone.end(), 0.25f);
          kernels.multiply_rows(one);
          ASSERT_TRUE(test::same_bits(alone.data(), c.data() + r * 20, 16));
        }
      }
    }
  }
}

TEST(RowKernels, F16IsTheScalarConversion) {
  auto x = test::random_floats(1003, 12, 70000.0f);
  for (size_t i = 0; i < 300; ++i) x[i] *= 1e-10f;
  for (const CpuLevel level : available_cpu_levels()) {
    auto y = x;
    row_kernels(level).round_f16(y.data(), static_cast<int64_t>(y.size()));
    std::vector<uint16_t> h(x.size());
    for (size_t i = 0; i < x.size(); ++i) h[i] = to_f16(x[i]).bits;
    std::vector<float> wide(x.size());
    row_kernels(level).f16_to_f32(h.data(), static_cast<int64_t>(h.size()), wide.data());
    for (size_t i = 0; i < x.size(); ++i)
      ASSERT_EQ(y[i], round_to(x[i], Rounding::kF16)) << to_string(level) << x[i];
    EXPECT_EQ(y, wide);
  }
}

}  // namespace
}  // namespace duet
