#include "kernels/packed.h"

#include <emmintrin.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"
#include "kernels/packed8.h"

namespace duet {
namespace {

// k steps that are turned around at a time: 16 rows of them (4 KiB as float32) stay in L1.
constexpr int64_t kTile = 64;

/// Where column n of the stacked matrix lies.
struct Column {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  int64_t stride = 0;  // elements from one k to the next
  pack_detail::Source source;
};

bool is_float(DType d) {
  return d == DType::kF32 || d == DType::kBf16 || d == DType::kF16;
}
bool is_8bit(DType d) {
  return d == DType::kF8E4M3 || d == DType::kI8;
}

void check_parts(std::span<const WeightView> parts, PackAs as) {
  if (!is_float(as.dtype) && !is_8bit(as.dtype)) {
    throw Error(ErrorKind::kUnsupported, std::string("cannot pack weights as ") + to_string(as.dtype) +
                                             "; expected float32, bfloat16, float16, float8_e4m3 or int8");
  }
  DUET_CHECK((as.inputs == Inputs::kFloat) == (as.dtype != DType::kI8));
  for (const WeightView& part : parts) {
    DUET_CHECK(part.cols == parts[0].cols);
    // fp8 keeps its published scales: nothing here chooses new ones.
    const bool fits = as.dtype == DType::kF8E4M3 ? part.dtype == as.dtype || !part.scales.data
                                                 : is_8bit(part.dtype) || is_float(part.dtype);
    if (part.rows > 0 && (!fits || (!is_float(part.dtype) && !is_8bit(part.dtype)))) {
      throw Error(ErrorKind::kUnsupported, std::string("cannot pack weights stored as ") +
                                               to_string(part.dtype) + " as " + to_string(as.dtype));
    }
  }
}

/// k that share a scale; without scales by k, all of them.
int64_t scale_block(const WeightView& w) {
  if (w.scales.data && w.scales.col_stride != 0) return w.scales.block_cols;
  return std::max<int64_t>((w.scales.col_offset + w.cols + 3) / 4 * 4, 4);
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
    return {base + offset, v.dtype, v.col_stride, {&v, row_++}};
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

/// As turn_same, every element through float32; the columns begin at k0. k ≤ kTile.
void turn_converted(const Column* columns, int count, int64_t k0, int64_t k, DType dtype, std::byte* out) {
  alignas(64) float converted[kPanelColumns][kTile];
  float wide[kTile];
  Column moved[kPanelColumns];
  const bool bare = std::all_of(columns, columns + count, [](const Column& c) { return is_float(c.dtype); });
  if (bare && neighbours(columns, count)) {  // a k at a time, 16 (or count) neighbours
    const auto step = columns[0].stride * static_cast<int64_t>(dtype_bytes(columns[0].dtype));
    const auto size = static_cast<int64_t>(dtype_bytes(dtype));
    auto* rows = reinterpret_cast<std::byte*>(converted);
    for (int64_t i = 0; i < k; ++i) {
      convert_to_f32(columns[0].data + i * step, columns[0].dtype, wide, static_cast<size_t>(count));
      convert_from_f32(wide, dtype, rows + i * kPanelColumns * size, static_cast<size_t>(count));
    }
    for (int c = 0; c < count; ++c) moved[c] = {rows + c * size, dtype, kPanelColumns, {}};
    turn_same(moved, count, k, dtype, out);
    return;
  }
  for (int c = 0; c < count; ++c) {
    if (is_float(columns[c].dtype)) {
      widen_column(columns[c], k, wide);
    } else {
      pack_detail::widen_scaled(columns[c].source, k0, k, wide);
    }
    convert_from_f32(wide, dtype, converted[c], static_cast<size_t>(k));
    moved[c] = {reinterpret_cast<const std::byte*>(converted[c]), dtype, 1, {}};
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
    if (same) {
      turn_same(at, count, length, dtype, panel + k0 * line);
    } else {
      turn_converted(at, count, k0, length, dtype, panel + k0 * line);
    }
  }
}

}  // namespace

bool fits_fp8(const WeightView& w) {
  const int64_t block = scale_block(w);
  return block % 4 == 0 && block < (int64_t{1} << 30) && w.scales.col_offset % 4 == 0;
}

PackedView packed_shape(std::span<const WeightView> parts, PackAs as) {
  PackedView shape;
  shape.dtype = as.dtype;
  shape.inputs = as.inputs;
  for (const WeightView& part : parts) {
    shape.n += part.rows;
    shape.k = part.cols;
    if (as.dtype == DType::kF8E4M3 && part.dtype == as.dtype && part.rows > 0) {
      if (!fits_fp8(part)) {
        throw Error(ErrorKind::kUnsupported,
                    "fp8 scales whose blocks do not begin and end on multiples of 4 columns");
      }
      shape.block = static_cast<int32_t>(scale_block(part));
      shape.offset = static_cast<int32_t>(part.scales.data ? part.scales.col_offset % shape.block : 0);
    }
  }
  // Parts of zeros alone.
  if (as.dtype == DType::kF8E4M3 && shape.block == 0) shape.block = 128;
  return shape;
}

int64_t PackedView::panel_bytes() const {
  return static_cast<int64_t>(
      packed_bytes(kPanelColumns, std::max(k, panel_k), dtype, std::max<int64_t>(block, 4), offset));
}

PackedView PackedView::from_panel(int64_t first, int64_t columns) const {
  PackedView part = *this;
  part.data = static_cast<const std::byte*>(data) + first * panel_bytes();
  part.n = columns;
  return part;
}

PackedView PackedView::first_k(int64_t count) const {
  DUET_CHECK(count <= k && dtype != DType::kI8 && dtype != DType::kF8E4M3);
  PackedView part = *this;
  part.panel_k = std::max(k, panel_k);
  part.k = count;
  return part;
}

size_t packed_bytes(int64_t n, int64_t k, DType dtype, int64_t block, int64_t offset) {
  const int64_t panels = (n + kPanelColumns - 1) / kPanelColumns;
  if (dtype == DType::kI8) return static_cast<size_t>(panels * (128 + (k + 3) / 4 * 64));
  if (dtype == DType::kF8E4M3) {
    const int64_t blocks = k == 0 ? 0 : (offset + k + block - 1) / block - offset / block;
    return static_cast<size_t>(panels * (blocks * 64 + (k + 3) / 4 * 64));
  }
  const int64_t depth = dtype == DType::kBf16 ? (k + 1) / 2 * 2 : k;
  return static_cast<size_t>(panels * depth * kPanelColumns) * dtype_bytes(dtype);
}

namespace {

/// `parts` as panels of `shape` from `dst` on.
void pack_panels(std::span<const WeightView> parts, const PackedView& shape, std::byte* dst) {
  int64_t n = 0;
  for (const WeightView& part : parts) n += part.rows;
  if (n == 0 || shape.k == 0) return;
  const int64_t panel_bytes = shape.panel_bytes();
  const bool quads = is_8bit(shape.dtype);
  AlignedBuffer bytes(quads ? static_cast<size_t>((shape.k + 3) / 4 * 4 * kPanelColumns) : 0);
  ColumnCursor cursor(parts);
  std::byte* panel = dst;
  for (int64_t n0 = 0; n0 < n; n0 += kPanelColumns, panel += panel_bytes) {
    Column columns[kPanelColumns];
    const int count = static_cast<int>(std::min(kPanelColumns, n - n0));
    for (int c = 0; c < count; ++c) columns[c] = cursor.next();
    if (!quads) {
      pack_panel(columns, count, shape.k, shape.dtype, panel, panel_bytes);
      continue;
    }
    pack_detail::Source sources[kPanelColumns];
    for (int c = 0; c < count; ++c) sources[c] = columns[c].source;
    pack_detail::pack_panel8(sources, count, shape, panel, bytes.data());
  }
}

}  // namespace

void pack_into(std::span<const WeightView> parts, PackAs as, void* dst) {
  check_parts(parts, as);
  pack_panels(parts, packed_shape(parts, as), static_cast<std::byte*>(dst));
}

PackedMatrix::PackedMatrix(std::span<const WeightView> parts, PackAs as) {
  check_parts(parts, as);
  shape_ = packed_shape(parts, as);
  buffer_ = AlignedBuffer::side_by_side(
      static_cast<size_t>((shape_.n + kPanelColumns - 1) / kPanelColumns * shape_.panel_bytes()));
  pack_panels(parts, shape_, buffer_.data());
}

PackedMatrix::PackedMatrix(int64_t n, int64_t k, PackAs as, const WeightView& like) {
  check_parts({&like, 1}, as);
  shape_ = packed_shape({&like, 1}, as);
  shape_.n = n;
  shape_.k = k;
  buffer_ = AlignedBuffer::side_by_side(
      static_cast<size_t>((n + kPanelColumns - 1) / kPanelColumns * shape_.panel_bytes()));
}

void PackedMatrix::pack_rows(int64_t first_row, const WeightView& part) {
  DUET_CHECK(first_row % kPanelColumns == 0 && first_row + part.rows <= shape_.n && part.cols == shape_.k);
  check_parts({&part, 1}, {shape_.dtype, shape_.inputs});
  pack_panels({&part, 1}, shape_, buffer_.data() + first_row / kPanelColumns * shape_.panel_bytes());
}

}  // namespace duet
