#include "kernels/cpu/row_split.h"

namespace duet {

namespace {

using RotateHead = void (*)(float* x, const float* cos, const float* sin, int64_t half);

void rotate(const KernelContext& cx, Rows x, int heads, int64_t head_stride, int64_t offset,
            std::span<const int32_t> positions, const RopeTable& table, RotateHead rotate_head) {
  DUET_CHECK(static_cast<int64_t>(positions.size()) == x.rows);
  DUET_CHECK(heads == 0 || (heads - 1) * head_stride + offset + 2 * table.half <= x.cols);
  const int64_t half = table.half;
  for_rows(cx, x.rows, heads * half * 2, [&](int64_t r) {
    const int64_t position = positions[static_cast<size_t>(r)];
    DUET_CHECK(position >= 0 && position < table.positions);
    const float* cos = table.cos.data() + position * half;
    const float* sin = table.sin.data() + position * half;
    for (int h = 0; h < heads; ++h) rotate_head(x.row(r) + h * head_stride + offset, cos, sin, half);
  });
}

}  // namespace

void rope_interleaved(const KernelContext& cx, Rows x, int heads, int64_t head_stride, int64_t offset,
                      std::span<const int32_t> positions, const RopeTable& table) {
  rotate(cx, x, heads, head_stride, offset, positions, table, row_kernels(cx.level).rope);
}

void rope_halves(const KernelContext& cx, Rows x, int heads, int64_t head_stride, int64_t offset,
                 std::span<const int32_t> positions, const RopeTable& table) {
  rotate(cx, x, heads, head_stride, offset, positions, table, row_kernels(cx.level).rope_halves);
}

}  // namespace duet
