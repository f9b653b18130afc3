#include <gtest/gtest.h>

#include <cmath>

#include "kernels/gemm_support.h"
#include "kernels/ref/row_ops.h"

namespace duet {
namespace {

RopeTable make_table(int64_t positions, int half, float scaling = 1.0f) {
  RopeTable t;
  t.positions = positions;
  t.half = half;
  for (int64_t p = 0; p < positions; ++p) {
    for (int j = 0; j < half; ++j) {
      const double angle = static_cast<double>(p) * std::pow(10000.0, -static_cast<double>(j) / half);
      t.cos.push_back(static_cast<float>(std::cos(angle)) * scaling);
      t.sin.push_back(static_cast<float>(std::sin(angle)) * scaling);
    }
  }
  return t;
}

TEST(Rope, MatchesTheOracleInPlaceAndLeavesTheRest) {
  for (const CpuLevel level : available_cpu_levels()) {
    for (const int half : {1, 3, 4, 8, 9, 32, 37}) {
      const RopeTable table = make_table(50, half, 1.3f);
      const int heads = 3;
      const int64_t offset = 5, head_stride = offset + 2 * half + 1, cols = heads * head_stride,
                    stride = cols + 2;
      const std::vector<int32_t> positions = {49, 0, 7, 7, 12};
      const auto x = test::random_floats(5 * stride, static_cast<uint32_t>(half), 3.0f);
      auto got = x, want = x;
      rope_interleaved(KernelContext{level}, {got.data(), 5, cols, stride}, heads, head_stride, offset,
                       positions, table);
      ref::rope_interleaved({want.data(), 5, cols, stride}, heads, head_stride, offset, positions, table);
      for (size_t i = 0; i < got.size(); ++i) {
        const int64_t col = static_cast<int64_t>(i) % stride, in_head = col % head_stride;
        const bool rotated = col < cols && in_head >= offset && in_head < offset + 2 * half;
        if (!rotated) {
          EXPECT_EQ(got[i], x[i]) << i;
        } else {  // two products and a sum, each rounded, of terms up to 3 · 1.3
          EXPECT_NEAR(got[i], want[i], 3 * 3.9 * 0x1p-23)
              << to_string(level) << " half " << half << " i " << i;
        }
      }
    }
  }
}

TEST(Rope, HalvesMatchTheOracle) {
  for (const CpuLevel level : available_cpu_levels()) {
    for (const int half : {1, 3, 8, 16, 37, 64}) {
      const RopeTable table = make_table(50, half, 1.3f);
      const int heads = 3;
      const int64_t head_stride = 2 * half + 1, cols = heads * head_stride + 2;
      const std::vector<int32_t> positions = {49, 0, 7, 12};
      const auto x = test::random_floats(4 * cols, static_cast<uint32_t>(half), 3.0f);
      auto got = x, want = x;
      rope_halves(KernelContext{level}, {got.data(), 4, cols}, heads, head_stride, 1, positions, table);
      ref::rope_halves({want.data(), 4, cols}, heads, head_stride, 1, positions, table);
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_NEAR(got[i], want[i], 3 * 3.9 * 0x1p-23) << to_string(level) << " half " << half << " i " << i;
        const int64_t col = static_cast<int64_t>(i) % cols;
        if (col == 0 || col > heads * head_stride) {
          EXPECT_EQ(got[i], x[i]) << i;
        }
      }
      EXPECT_FALSE(test::same_bits(got.data(), x.data(), cols));
    }
  }
}

TEST(Rope, ThreadsChangeNoBit) {
  const RopeTable table = make_table(600, 32);
  const auto x = test::random_floats(512 * 256, 9);
  std::vector<int32_t> positions;
  for (int i = 0; i < 512; ++i) positions.push_back(i + 60);
  for (const CpuLevel level : available_cpu_levels()) {
    test::TestContext three(level, 3, 0);
    auto a = x, b = x;
    rope_interleaved(KernelContext{level}, {a.data(), 512, 256}, 4, 64, 0, positions, table);
    rope_interleaved(three.cx, {b.data(), 512, 256}, 4, 64, 0, positions, table);
    EXPECT_TRUE(test::same_bits(a.data(), b.data(), 512 * 256));
    EXPECT_FALSE(test::same_bits(a.data(), x.data(), 512 * 256));
  }
}

}  // namespace
}  // namespace duet
