#include "kernels/packed.h"

#include <emmintrin.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"

namespace duet {
namespace {

// k steps that are turned around at a time: 16 rows of them (4 KiB as float32) stay in L1.
constexpr int64_t kTile = 64;

/// Where column n of the stacked matrix lies.
struct Column {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  int64_t stride = 0;  // elements from one k to the next
};

void check_parts(std::span<const WeightView> parts, DType dtype) {
  const auto known = [](DType d) { return d == DType::kF32 || d == DType::kBf16 || d == DType::kF16; };
  if (!known(dtype)) {
    throw Error(ErrorKind::kUnsupported, std::string("cannot pack weights as ") + to_string(dtype) +
                                             "; expected float32, bfloat16 or float16");
  }
  for (const WeightView& part : parts) {
    DUET_CHECK(part.cols == parts[0].cols);
    if (part.rows > 0 && !known(part.dtype)) {
      throw Error(ErrorKind::kUnsupported, std::string("cannot pack weights stored as ") +
                                               to_string(part.dtype) +
                                               "; convert them to float32, bfloat16 or float16 first");
    }
  }
}

/// Walks the rows of `parts` in order.
class ColumnCursor {
 public:
  explicit ColumnCursor(std::span<const WeightView> parts) : parts_(parts) {}
  Column next() {
    while (row_ == parts_[part_].rows) {
      ++part_;
      row_ = 0;
    }
    const WeightView& v = parts_[part_];
    const auto* base = static_cast<const std::byte*>(v.data);
    const auto offset = row_ * v.row_stride * static_cast<int64_t>(dtype_bytes(v.dtype));
    ++row_;
    return {base + offset, v.dtype, v.col_stride};
  }

 private:
  std::span<const WeightView> parts_;
  size_t part_ = 0;
  int64_t row_ = 0;
};

/// Copies bits: element i of column c goes to out[(i / G) · 16 · G + c · G + i % G], G = group.
template <typename T, int G>
void turn(const Column* columns, int count, int64_t k, T* out) {
  for (int c = 0; c < count; ++c) {
    const int64_t stride = columns[c].stride;
    const T* in = reinterpret_cast<const T*>(columns[c].data);
    T* to = out + c * G;
    int64_t i = 0;
    for (; i + G <= k; i += G, in += G * stride, to += kPanelColumns * G) {
      for (int g = 0; g < G; ++g) to[g] = in[g * stride];
    }
    for (int g = 0; i + g < k; ++g) to[g] = in[g * stride];
  }
}

/// 16 columns of contiguous 32-bit words (float32, or pairs of bf16): word i of column c goes to
/// out[16 · i + c]. `words` need not be a multiple of four.
void turn_words(const std::byte* const* columns, int64_t words, std::byte* out) {
  for (int64_t i = 0; i < words; i += 4) {
    const int64_t left = std::min<int64_t>(4, words - i);
    for (int c = 0; c < kPanelColumns; c += 4) {
      __m128 row[4];
      for (int r = 0; r < 4; ++r) {
        if (left == 4) {
          row[r] = _mm_loadu_ps(reinterpret_cast<const float*>(columns[c + r]) + i);
        } else {
          float part[4] = {};
          std::memcpy(part, columns[c + r] + i * 4, static_cast<size_t>(left) * 4);
          row[r] = _mm_loadu_ps(part);
        }
      }
      _MM_TRANSPOSE4_PS(row[0], row[1], row[2], row[3]);
      for (int r = 0; r < left; ++r) {
        _mm_storeu_ps(reinterpret_cast<float*>(out) + (i + r) * kPanelColumns + c, row[r]);
      }
    }
  }
}

/// Two k of 16 neighbouring bf16 columns → 16 pairs.
void zip_pair(const std::byte* even, const std::byte* odd, std::byte* out) {
  for (int half = 0; half < 2; ++half) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(even) + half);
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(odd) + half);
    auto* to = reinterpret_cast<__m128i*>(out) + 2 * half;
    _mm_storeu_si128(to, _mm_unpacklo_epi16(a, b));
    _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(a, b));
  }
}

/// Whether the columns lie side by side, as in a transposed matrix.
bool neighbours(const Column* columns, int count) {
  const auto size = static_cast<int64_t>(dtype_bytes(columns[0].dtype));
  for (int c = 1; c < count; ++c) {
    if (columns[c].stride != columns[0].stride || columns[c].dtype != columns[0].dtype ||
        columns[c].data != columns[0].data + c * size) {
      return false;
    }
  }
  return true;
}

/// A transposed matrix: the 16 columns lie side by side, `stride` elements from one k to the next.
void copy_neighbours(const Column& first, int64_t k, DType dtype, std::byte* out) {
  const auto size = static_cast<int64_t>(dtype_bytes(dtype));
  const int64_t line = kPanelColumns * size;
  const int64_t stride = first.stride * size;
  if (dtype != DType::kBf16) {
    for (int64_t i = 0; i < k; ++i)
      std::memcpy(out + i * line, first.data + i * stride, static_cast<size_t>(line));
    return;
  }
  static constexpr uint16_t kZeros[kPanelColumns] = {};
  for (int64_t i = 0; i < k; i += 2) {
    const std::byte* even = first.data + i * stride;
    zip_pair(even, i + 1 < k ? even + stride : reinterpret_cast<const std::byte*>(kZeros), out + i * line);
  }
}

/// `k` elements of `count` columns that already are of type `dtype`.
void turn_same(const Column* columns, int count, int64_t k, DType dtype, std::byte* out) {
  const bool full = count == kPanelColumns;
  bool contiguous = full;
  const std::byte* data[kPanelColumns];
  for (int c = 0; c < count; ++c) {
    data[c] = columns[c].data;
    contiguous = contiguous && columns[c].stride == 1;
  }
  if (full && neighbours(columns, count)) {
    copy_neighbours(columns[0], k, dtype, out);
  } else if (contiguous && dtype == DType::kF32) {
    turn_words(data, k, out);
  } else if (contiguous && dtype == DType::kBf16 && k % 2 == 0) {
    turn_words(data, k / 2, out);
  } else if (dtype == DType::kF32) {
    turn<float, 1>(columns, count, k, reinterpret_cast<float*>(out));
  } else if (dtype == DType::kBf16) {
    turn<uint16_t, 2>(columns, count, k, reinterpret_cast<uint16_t*>(out));
  } else {
    turn<uint16_t, 1>(columns, count, k, reinterpret_cast<uint16_t*>(out));
  }
}

/// Elements of a column as float32.
void widen_column(const Column& column, int64_t k, float* out) {
  if (column.stride == 1) {
    convert_to_f32(column.data, column.dtype, out, static_cast<size_t>(k));
    return;
  }
  const auto step = column.stride * static_cast<int64_t>(dtype_bytes(column.dtype));
  for (int64_t i = 0; i < k; ++i) convert_to_f32(column.data + i * step, column.dtype, out + i, 1);
}

/// As turn_same, every element through float32. k ≤ kTile.
void turn_converted(const Column* columns, int count, int64_t k, DType dtype, std::byte* out) {
  alignas(64) float converted[kPanelColumns][kTile];
  float wide[kTile];
  Column moved[kPanelColumns];
  if (neighbours(columns, count)) {  // a k at a time, 16 (or count) neighbours
    const auto step = columns[0].stride * static_cast<int64_t>(dtype_bytes(columns[0].dtype));
    const auto size = static_cast<int64_t>(dtype_bytes(dtype));
    auto* rows = reinterpret_cast<std::byte*>(converted);
    for (int64_t i = 0; i < k; ++i) {
      convert_to_f32(columns[0].data + i * step, columns[0].dtype, wide, static_cast<size_t>(count));
      convert_from_f32(wide, dtype, rows + i * kPanelColumns * size, static_cast<size_t>(count));
    }
    for (int c = 0; c < count; ++c) moved[c] = {rows + c * size, dtype, kPanelColumns};
    turn_same(moved, count, k, dtype, out);
    return;
  }
  for (int c = 0; c < count; ++c) {
    widen_column(columns[c], k, wide);
    convert_from_f32(wide, dtype, converted[c], static_cast<size_t>(k));
    moved[c] = {reinterpret_cast<const std::byte*>(converted[c]), dtype, 1};
  }
  turn_same(moved, count, k, dtype, out);
}

void pack_panel(const Column* columns, int count, int64_t k, DType dtype, std::byte* panel,
                int64_t panel_bytes) {
  const bool ragged = count < kPanelColumns || (dtype == DType::kBf16 && k % 2 != 0);
  if (ragged) std::memset(panel, 0, static_cast<size_t>(panel_bytes));
  const bool same = std::all_of(columns, columns + count, [&](const Column& c) { return c.dtype == dtype; });
  const auto line = kPanelColumns * static_cast<int64_t>(dtype_bytes(dtype));
  Column at[kPanelColumns];
  for (int64_t k0 = 0; k0 < k; k0 += kTile) {  // k0 is even, so pairs stay pairs
    for (int c = 0; c < count; ++c) {
      const auto size = static_cast<int64_t>(dtype_bytes(columns[c].dtype));
      at[c] = columns[c];
      at[c].data += k0 * columns[c].stride * size;
    }
    const int64_t length = std::min(kTile, k - k0);
    (same ? turn_same : turn_converted)(at, count, length, dtype, panel + k0 * line);
  }
}

}  // namespace

size_t packed_bytes(int64_t n, int64_t k, DType dtype) {
  const int64_t panels = (n + kPanelColumns - 1) / kPanelColumns;
  const int64_t depth = dtype == DType::kBf16 ? (k + 1) / 2 * 2 : k;
  return static_cast<size_t>(panels * depth * kPanelColumns) * dtype_bytes(dtype);
}

void pack_into(std::span<const WeightView> parts, DType dtype, void* dst) {
  check_parts(parts, dtype);
  int64_t n = 0;
  for (const WeightView& part : parts) n += part.rows;
  if (n == 0 || parts[0].cols == 0) return;
  const int64_t k = parts[0].cols;
  const auto panel_bytes = static_cast<int64_t>(packed_bytes(kPanelColumns, k, dtype));
  ColumnCursor cursor(parts);
  auto* panel = static_cast<std::byte*>(dst);
  for (int64_t n0 = 0; n0 < n; n0 += kPanelColumns, panel += panel_bytes) {
    Column columns[kPanelColumns];
    const int count = static_cast<int>(std::min(kPanelColumns, n - n0));
    for (int c = 0; c < count; ++c) columns[c] = cursor.next();
    pack_panel(columns, count, k, dtype, panel, panel_bytes);
  }
}

PackedMatrix::PackedMatrix(std::span<const WeightView> parts, DType dtype)
    : dtype_(dtype), k_(parts.empty() ? 0 : parts[0].cols) {
  check_parts(parts, dtype);
  for (const WeightView& part : parts) n_ += part.rows;
  buffer_ = AlignedBuffer(packed_bytes(n_, k_, dtype));
  pack_into(parts, dtype, buffer_.data());
}

}  // namespace duet
