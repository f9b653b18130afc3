#include "kernels/packed8.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"

namespace duet::pack_detail {
namespace {

constexpr int64_t kPiece = 256;  // elements converted at a time

const std::byte* element(const Source& c, int64_t k) {
  const auto size = static_cast<int64_t>(dtype_bytes(c.view->dtype));
  return static_cast<const std::byte*>(c.view->data) +
         (c.row * c.view->row_stride + k * c.view->col_stride) * size;
}

/// Bare values, scales not applied.
void widen_bare(const Source& c, int64_t first, int64_t count, float* out) {
  if (c.view->col_stride == 1) {
    convert_to_f32(element(c, first), c.view->dtype, out, static_cast<size_t>(count));
    return;
  }
  for (int64_t i = 0; i < count; ++i) convert_to_f32(element(c, first + i), c.view->dtype, out + i, 1);
}

void copy_bytes(const Source& c, int64_t k, std::byte* out) {
  if (c.view->col_stride == 1) {
    std::memcpy(out, element(c, 0), static_cast<size_t>(k));
    return;
  }
  for (int64_t i = 0; i < k; ++i) out[i] = *element(c, i);
}

float quantise(const Source& c, int64_t k, std::byte* out) {
  std::vector<float> row(static_cast<size_t>(k));
  widen_scaled(c, 0, k, row.data());
  const float scale = quantise_row_i8(row.data(), row.size(), reinterpret_cast<int8_t*>(out));
  if (!std::isfinite(scale)) {
    throw Error(ErrorKind::kCorrupt, "a weight that is to be quantised to int8 is not finite");
  }
  return scale;
}

/// A column's bytes and, for i8, its scale.
float column_bytes(const Source& c, const PackedView& shape, std::byte* out) {
  const DType stored = c.view->dtype;
  if (shape.dtype == DType::kI8) {
    if (stored != DType::kI8 || c.view->scales.col_stride != 0) {
      return quantise(c, shape.k, out);
    }
    copy_bytes(c, shape.k, out);
    return c.view->scales.data ? c.view->scales.at(c.row, 0) : 1.0f;
  }
  if (stored == DType::kF8E4M3) {
    copy_bytes(c, shape.k, out);
    const auto is_nan = [](std::byte b) { return (b & std::byte{0x7f}) == std::byte{0x7f}; };
    if (std::any_of(out, out + shape.k, is_nan)) {
      throw Error(ErrorKind::kCorrupt, "an fp8 weight holds NaN");
    }
    return 1.0f;
  }
  // Filling columns of zeros come as floats.
  float piece[kPiece];
  for (int64_t i = 0; i < shape.k; i += kPiece) {
    const int64_t count = std::min(kPiece, shape.k - i);
    widen_bare(c, i, count, piece);
    convert_from_f32(piece, DType::kF8E4M3, out + i, static_cast<size_t>(count));
  }
  return 1.0f;
}

/// [from, to) of the columns' bytes, `stride` apart and padded to whole quads.
void turn_quads(const std::byte* bytes, int64_t stride, int count, int64_t from, int64_t to, DType dtype,
                std::byte* out) {
  for (int c = 0; c < count; ++c) {
    const std::byte* in = bytes + c * stride + from;
    std::byte* at = out + (dtype == DType::kI8 ? c * 4 : c / 4 * 16 + c % 4 * 2);
    const int64_t second = dtype == DType::kI8 ? 2 : 8;
    for (int64_t k = from; k < to; k += 4, in += 4, at += 64) {
      std::memcpy(at, in, 2);
      std::memcpy(at + second, in + 2, 2);
    }
  }
}

void finish_int8(const std::byte* bytes, int64_t stride, int count, const PackedView& shape,
                 std::byte* panel) {
  int32_t sums[kPanelColumns] = {};
  for (int c = 0; c < count; ++c) {
    uint32_t sum = 0;  // wraps as the kernel's sums do: what remains in the end is exact
    for (int64_t i = 0; i < shape.k; ++i) {
      sum += static_cast<uint32_t>(static_cast<int32_t>(static_cast<int8_t>(bytes[c * stride + i])));
    }
    sums[c] = static_cast<int32_t>(sum * 128u);
  }
  std::memcpy(panel + 64, sums, sizeof(sums));
  turn_quads(bytes, stride, count, 0, shape.k, shape.dtype, panel + 128);
}

void finish_fp8(const Source* columns, const std::byte* bytes, int64_t stride, int count,
                const PackedView& shape, std::byte* panel) {
  std::byte* at = panel;
  for (int64_t k = 0, end; k < shape.k; k = end) {
    end = std::min(shape.k, k + shape.block - (shape.offset + k) % shape.block);
    float scales[kPanelColumns] = {};
    for (int c = 0; c < count; ++c) {
      const WeightScales& s = columns[c].view->scales;
      scales[c] = s.data ? s.at(columns[c].row, k) : 1.0f;
    }
    std::memcpy(at, scales, sizeof(scales));
    at += 64;
    turn_quads(bytes, stride, count, k, end, shape.dtype, at);
    at += (end - k + 3) / 4 * 64;
  }
}

}  // namespace

void widen_scaled(const Source& column, int64_t first, int64_t count, float* out) {
  widen_bare(column, first, count, out);
  const WeightScales& s = column.view->scales;
  if (!s.data) return;
  for (int64_t i = 0; i < count; ++i) out[i] *= s.at(column.row, first + i);
}

void pack_panel8(const Source* columns, int count, const PackedView& shape, std::byte* panel,
                 std::byte* bytes) {
  const int64_t stride = (shape.k + 3) / 4 * 4;
  std::memset(panel, 0, static_cast<size_t>(shape.panel_bytes()));
  std::memset(bytes, 0, static_cast<size_t>(stride * kPanelColumns));
  float scales[kPanelColumns] = {};
  for (int c = 0; c < count; ++c) scales[c] = column_bytes(columns[c], shape, bytes + c * stride);
  if (shape.dtype == DType::kI8) {
    std::memcpy(panel, scales, sizeof(scales));
    finish_int8(bytes, stride, count, shape, panel);
  } else {
    finish_fp8(columns, bytes, stride, count, shape, panel);
  }
}

}  // namespace duet::pack_detail
