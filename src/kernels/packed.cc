#include "kernels/packed.h"

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

/// Copies bits: element k of column c goes to out[(k / G) · 16 · G + c · G + k % G], G = group.
template <typename T, int G>
void turn(const Column* columns, int count, int64_t k0, int64_t k1, T* out) {
  for (int c = 0; c < count; ++c) {
    const int64_t stride = columns[c].stride;
    const T* in = reinterpret_cast<const T*>(columns[c].data) + k0 * stride;
    T* to = out + k0 / G * kPanelColumns * G + c * G;
    int64_t k = k0;
    for (; k + G <= k1; k += G, in += G * stride, to += kPanelColumns * G) {
      for (int g = 0; g < G; ++g) to[g] = in[g * stride];
    }
    for (int g = 0; k + g < k1; ++g) to[g] = in[g * stride];
  }
}

/// Elements [k0, k1) of a column as float32.
void widen_column(const Column& column, int64_t k0, int64_t k1, float* out) {
  const auto size = static_cast<int64_t>(dtype_bytes(column.dtype));
  const std::byte* in = column.data + k0 * column.stride * size;
  if (column.stride == 1) {
    convert_to_f32(in, column.dtype, out, static_cast<size_t>(k1 - k0));
    return;
  }
  for (int64_t k = k0; k < k1; ++k, in += column.stride * size)
    convert_to_f32(in, column.dtype, out + (k - k0), 1);
}

/// The slow general form of turn(): every element through float32.
void turn_converted(const Column* columns, int count, int64_t k0, int64_t k1, DType dtype, std::byte* panel) {
  float wide[kPanelColumns][kTile];
  alignas(64) uint16_t narrow[kTile];
  for (int c = 0; c < count; ++c) {
    widen_column(columns[c], k0, k1, wide[c]);
    const Column local{nullptr, dtype, 1};
    Column moved = local;
    if (dtype == DType::kF32) {
      moved.data = reinterpret_cast<const std::byte*>(wide[c]);
    } else {
      convert_from_f32(wide[c], dtype, narrow, static_cast<size_t>(k1 - k0));
      moved.data = reinterpret_cast<const std::byte*>(narrow);
    }
    // One column at a time; k0 is even, so pairs stay pairs.
    const int64_t step = static_cast<int64_t>(dtype_bytes(dtype)) * kPanelColumns;
    std::byte* to = panel + k0 * step;
    if (dtype == DType::kF32) turn<float, 1>(&moved, 1, 0, k1 - k0, reinterpret_cast<float*>(to) + c);
    if (dtype == DType::kF16) turn<uint16_t, 1>(&moved, 1, 0, k1 - k0, reinterpret_cast<uint16_t*>(to) + c);
    if (dtype == DType::kBf16)
      turn<uint16_t, 2>(&moved, 1, 0, k1 - k0, reinterpret_cast<uint16_t*>(to) + 2 * c);
  }
}

void pack_panel(const Column* columns, int count, int64_t k, DType dtype, std::byte* panel,
                int64_t panel_bytes) {
  const bool ragged = count < kPanelColumns || (dtype == DType::kBf16 && k % 2 != 0);
  if (ragged) std::memset(panel, 0, static_cast<size_t>(panel_bytes));
  const bool same = std::all_of(columns, columns + count, [&](const Column& c) { return c.dtype == dtype; });
  for (int64_t k0 = 0; k0 < k; k0 += kTile) {
    const int64_t k1 = std::min(k, k0 + kTile);
    if (!same) {
      turn_converted(columns, count, k0, k1, dtype, panel);
    } else if (dtype == DType::kF32) {
      turn<float, 1>(columns, count, k0, k1, reinterpret_cast<float*>(panel));
    } else if (dtype == DType::kBf16) {
      turn<uint16_t, 2>(columns, count, k0, k1, reinterpret_cast<uint16_t*>(panel));
    } else {
      turn<uint16_t, 1>(columns, count, k0, k1, reinterpret_cast<uint16_t*>(panel));
    }
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
