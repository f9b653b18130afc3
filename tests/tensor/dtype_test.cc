#include "tensor/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace duet {
namespace {

TEST(DType, EveryF16ValueRoundTrips) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const f16_t v{static_cast<uint16_t>(bits)};
    const float f = to_f32(v);
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(to_f32(to_f16(f))));
    } else {
      EXPECT_EQ(to_f16(f).bits, bits);
    }
  }
}

TEST(DType, F16RoundsToNearestEven) {
  EXPECT_EQ(to_f16(1.0f + 0x1p-11f).bits, to_f16(1.0f).bits);                // tie to even
  EXPECT_EQ(to_f16(1.0f + 3 * 0x1p-11f).bits, to_f16(1.0f + 0x1p-9f).bits);  // tie to even, up
  EXPECT_EQ(to_f16(65519.0f).bits, 0x7bffu);
  EXPECT_EQ(to_f16(65520.0f).bits, 0x7c00u);
  EXPECT_EQ(to_f16(0x1p-25f).bits, 0u);
  EXPECT_EQ(to_f16(0x1.8p-25f).bits, 1u);
}

TEST(DType, BulkBf16EqualsScalar) {
  std::vector<float> in;
  for (uint32_t i = 0; i < 100000; ++i) in.push_back(std::bit_cast<float>(i * 42949u + 7u));
  in.push_back(NAN);
  in.push_back(INFINITY);
  std::vector<bf16_t> out(in.size());
  f32_to_bf16(in.data(), out.data(), in.size());
  for (size_t i = 0; i < in.size(); ++i) EXPECT_EQ(out[i].bits, to_bf16(in[i]).bits) << in[i];
}

}  // namespace
}  // namespace duet
