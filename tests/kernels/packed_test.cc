#include "kernels/packed.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "kernels/ref/gemm.h"
#include "quant_support.h"

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
  EXPECT_THROW(PackedMatrix(w.view, DType::kI32), Error);
  WeightView words = w.view;
  words.dtype = DType::kI32;
  EXPECT_THROW(PackedMatrix(words, DType::kF32), Error);
}

TEST(Packed8, FloatTypesGetValuesTimesScales) {
  for (const bool fp8 : {true, false}) {
    const test::QuantWeights w =
        fp8 ? test::QuantWeights::fp8(37, 150, 32, 5, 7, 1) : test::QuantWeights::int8(37, 150, 1);
    for (const DType dtype : test::packable_types()) {
      for (const bool turned : {false, true}) {
        const WeightView v = turned ? transposed(w.view) : w.view;
        const PackedMatrix packed(v, dtype);
        for (int64_t n = 0; n < v.rows; ++n) {
          for (int64_t k = 0; k < v.cols; ++k) {
            ASSERT_EQ(packed_at(packed.view(), n, k), ref::weight_at(v, n, k, dtype)) << n << ',' << k;
          }
        }
      }
    }
  }
}

/// Byte of (column, k) in a quad for float inputs.
int64_t at(int64_t c, int64_t i) {
  return c / 4 * 16 + i / 2 * 8 + c % 4 * 2 + i % 2;
}

TEST(Packed8, ReadsBackFromTheDocumentedLayout) {
  const test::QuantWeights w = test::QuantWeights::fp8(37, 150, 32, 5, 12, 2);  // 20 + 4 · 32 + 2 columns
  const PackedMatrix packed(w.view, DType::kF8E4M3);
  ASSERT_EQ(packed.bytes(), packed_bytes(37, 150, DType::kF8E4M3, 32, 12));
  ASSERT_EQ(packed.view().panel_bytes(), 6 * 64 + 38 * 64);
  const auto* data = static_cast<const std::byte*>(packed.view().data);
  for (int64_t n = 0; n < 37; ++n) {
    for (int64_t k = 0; k < 150; ++k) {
      const int64_t block = (12 + k) / 32;
      const std::byte* panel = data + n / 16 * packed.view().panel_bytes();
      // Before a block: a line of scales for it and each earlier one.
      float scale = 0.0f;
      const int64_t begin = block == 0 ? 0 : block * 32 - 12;
      std::memcpy(&scale, panel + block * 64 + begin / 4 * 64 + n % 16 * 4, 4);
      ASSERT_EQ(scale, w.view.scales.at(n, k));
      ASSERT_EQ(panel[(block + 1) * 64 + k / 4 * 64 + at(n % 16, k % 4)],
                w.bytes[static_cast<size_t>(n * 150 + k)]);
    }
  }
}

TEST(Packed8, FloatsBecomeInt8ByRow) {
  test::StoredWeights w(3, 50, DType::kF32, 4);
  auto* f = reinterpret_cast<float*>(w.bytes.data());
  std::fill_n(f + 50, 50, 0.0f);  // a row without a scale
  const PackedMatrix packed(w.view, DType::kI8);
  const auto* data = static_cast<const std::byte*>(packed.view().data);
  for (int64_t n = 0; n < 3; ++n) {
    const std::vector<double> want = ref::weight_row(w.view, n, DType::kI8);
    float scale = 0.0f;
    std::memcpy(&scale, data + n * 4, 4);
    int32_t sum = 0, stored = 0;
    for (int64_t k = 0; k < 50; ++k) {
      const auto q =
          static_cast<int8_t>(data[128 + k / 4 * 64 + n * 4 + k % 4]);  // the k of a column lie together
      ASSERT_EQ(q * double{scale}, want[static_cast<size_t>(k)]);
      sum += q;
    }
    std::memcpy(&stored, data + 64 + n * 4, 4);
    EXPECT_EQ(stored, 128 * sum);
  }
  const PackedMatrix w8a8(w.view, PackAs(DType::kI8, Inputs::kInt8));  // the same whatever the inputs
  ASSERT_EQ(w8a8.bytes(), packed.bytes());
  EXPECT_EQ(std::memcmp(w8a8.view().data, data, packed.bytes()), 0);
}

TEST(Packed8, InPiecesAsAtOnce) {
  const test::QuantWeights fp8 = test::QuantWeights::fp8(70, 44, 32, 30, 8, 5);
  const test::StoredWeights plain(70, 44, DType::kBf16, 6);
  for (const auto& [view, as] : {std::pair<WeightView, PackAs>{fp8.view, DType::kF8E4M3},
                                 {fp8.view, DType::kF32},
                                 {plain.view, PackAs(DType::kI8, Inputs::kInt8)},
                                 {plain.view, DType::kBf16}}) {
    const PackedMatrix whole(view, as);
    PackedMatrix pieces(70, 44, as, row_range(view, 0, 1));
    for (int64_t n = 0; n < 70; n += 32)
      pieces.pack_rows(n, row_range(view, n, std::min<int64_t>(32, 70 - n)));
    ASSERT_EQ(whole.bytes(), pieces.bytes());
    EXPECT_EQ(std::memcmp(whole.view().data, pieces.view().data, whole.bytes()), 0);
    EXPECT_EQ(whole.view().panel_bytes(), pieces.view().panel_bytes());
  }
}

TEST(Packed8, RefusesWhatItCannotHold) {
  test::QuantWeights nan = test::QuantWeights::fp8(4, 8, 32, 0, 0, 1);
  nan.bytes[9] = std::byte{0xff};
  EXPECT_THROW(PackedMatrix(nan.view, DType::kF8E4M3), Error);
  const test::QuantWeights odd = test::QuantWeights::fp8(4, 8, 32, 0, 2, 1);
  EXPECT_FALSE(fits_fp8(odd.view));
  EXPECT_THROW(PackedMatrix(odd.view, DType::kF8E4M3), Error);
  const test::QuantWeights lowest = test::QuantWeights::int8(4, 8, 1);
  const PackedMatrix kept(lowest.view, DType::kI8);
  EXPECT_EQ(std::memcmp(kept.view().data, lowest.scales.data(), 4 * sizeof(float)), 0);
  test::StoredWeights infinite(2, 3, DType::kF32, 1);
  reinterpret_cast<float*>(infinite.bytes.data())[4] = INFINITY;
  EXPECT_THROW(PackedMatrix(infinite.view, DType::kI8), Error);
}

}  // namespace
}  // namespace duet
