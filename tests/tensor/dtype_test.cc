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

TEST(DType, EveryF8ValueRoundTripsAndNeighboursRoundToEven) {
  for (uint32_t bits = 0; bits < 0x100; ++bits) {
    const float f = f8e4m3_to_f32(static_cast<uint8_t>(bits));
    EXPECT_EQ(f32_to_f8e4m3(f), bits);
    if ((bits & 0x7f) >= 0x7e) continue;
    const float next = f8e4m3_to_f32(static_cast<uint8_t>(bits + 1));
    const float middle = (f + next) / 2;
    EXPECT_EQ(f32_to_f8e4m3(middle), bits + bits % 2) << middle;
    EXPECT_EQ(f32_to_f8e4m3(std::nextafter(middle, f)), bits);
    EXPECT_EQ(f32_to_f8e4m3(std::nextafter(middle, next)), bits + 1);
  }
  EXPECT_EQ(f8e4m3_to_f32(0x01), 0x1p-9f);
  EXPECT_EQ(f8e4m3_to_f32(0x38), 1.0f);
  EXPECT_EQ(f8e4m3_to_f32(0xfe), -448.0f);
  EXPECT_TRUE(std::isnan(f8e4m3_to_f32(0x7f)));
  EXPECT_EQ(f32_to_f8e4m3(1e9f), 0x7e);
  EXPECT_EQ(f32_to_f8e4m3(-INFINITY), 0xfe);
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
