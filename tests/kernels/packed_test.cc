#include "kernels/packed.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "gemm_support.h"
#include "kernels/ref/gemm.h"

namespace duet {
namespace {

/// Element (n, k) read back from the documented layout.
float packed_at(const PackedView& p, int64_t n, int64_t k) {
  const auto panel = packed_bytes(kPanelColumns, p.k, p.dtype) * static_cast<size_t>(n / kPanelColumns);
  const std::byte* base = static_cast<const std::byte*>(p.data) + panel;
  const int64_t c = n % kPanelColumns;
  const int64_t at = p.dtype == DType::kBf16 ? k / 2 * 32 + c * 2 + k % 2 : k * kPanelColumns + c;
  float value = 0;
  convert_to_f32(base + at * static_cast<int64_t>(dtype_bytes(p.dtype)), p.dtype, &value, 1);
  return value;
}

TEST(Packed, LayoutForEveryTypeAndOrientation) {
  for (const DType stored : test::packable_types()) {
    for (const DType dtype : test::packable_types()) {
      for (const bool transposed : {false, true}) {
        for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {16, 64}, {19, 131}, {40, 7}}) {
          const test::StoredWeights w(n, k, stored, 7, transposed);
          const PackedMatrix packed(w.view, dtype);
          const int64_t columns = (n + 15) / 16 * 16;
          const int64_t depth = dtype == DType::kBf16 ? (k + 1) / 2 * 2 : k;
          for (int64_t i = 0; i < columns; ++i) {
            for (int64_t j = 0; j < depth; ++j) {
              const float want = i < n && j < k ? ref::weight_at(w.view, i, j, dtype) : 0.0f;
              ASSERT_EQ(packed_at(packed.view(), i, j), want) << n << 'x' << k << " at " << i << ',' << j;
            }
          }
        }
      }
    }
  }
}

TEST(Packed, PartsAreStackedAlongN) {
  const test::StoredWeights a(5, 33, DType::kF32, 1);
  const test::StoredWeights b(30, 33, DType::kBf16, 2, true);
  const test::StoredWeights none(0, 33, DType::kF16, 3);
  const WeightView parts[] = {a.view, none.view, b.view};
  const PackedMatrix packed(parts, DType::kBf16);
  ASSERT_EQ(packed.n(), 35);
  for (int64_t i = 0; i < 35; ++i) {
    for (int64_t k = 0; k < 33; ++k) {
      const float want =
          i < 5 ? ref::weight_at(a.view, i, k, DType::kBf16) : ref::weight_at(b.view, i - 5, k, DType::kBf16);
      ASSERT_EQ(packed_at(packed.view(), i, k), want);
    }
  }
}

TEST(Packed, EmptyAndUnsupported) {
  const test::StoredWeights none(0, 8, DType::kF32, 1);
  EXPECT_EQ(PackedMatrix(none.view, DType::kF32).bytes(), 0u);
  EXPECT_EQ(PackedMatrix(std::span<const WeightView>(), DType::kF32).n(), 0);
  const test::StoredWeights w(4, 8, DType::kF32, 1);
  EXPECT_THROW(PackedMatrix(w.view, DType::kI8), Error);
  WeightView fp8 = w.view;
  fp8.dtype = DType::kF8E4M3;
  EXPECT_THROW(PackedMatrix(fp8, DType::kF32), Error);
}

}  // namespace
}  // namespace duet
