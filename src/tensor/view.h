// Views of memory somebody else owns: shapes travel with pointers, nothing more.
#pragma once

#include <cstdint>
#include <type_traits>

#include "tensor/dtype.h"

namespace duet {

/// Row-major [rows, cols]; `stride` elements from one row to the next (≥ cols).
template <typename T>
struct MatrixView {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  MatrixView() = default;
  MatrixView(T* d, int64_t r, int64_t c) : data(d), rows(r), cols(c), stride(c) {}
  MatrixView(T* d, int64_t r, int64_t c, int64_t s) : data(d), rows(r), cols(c), stride(s) {}
  /// A mutable view reads as a const one.
  template <typename U>
  requires(std::is_same_v<const U, T> && !std::is_same_v<U, T>) MatrixView(const MatrixView<U>& o)
      : data(o.data), rows(o.rows), cols(o.cols), stride(o.stride) {}

  T* row(int64_t r) const { return data + r * stride; }
  /// Rows [first, first + count).
  MatrixView row_slice(int64_t first, int64_t count) const { return {row(first), count, cols, stride}; }
  /// Columns [first, first + count), same rows.
  MatrixView col_slice(int64_t first, int64_t count) const { return {data + first, rows, count, stride}; }
};

using ConstRows = MatrixView<const float>;
using Rows = MatrixView<float>;

/// What 8-bit elements of a weight are to be multiplied with, per block of rows × columns. Element
/// (n, k) of the view lies at (row_offset + n, col_offset + k) of the grid of blocks: a slice of a
/// matrix may begin inside a block.
struct WeightScales {
  const float* data = nullptr;  // null: elements are the numbers themselves
  int64_t block_rows = 1;
  int64_t block_cols = 1;
  int64_t row_offset = 0;
  int64_t col_offset = 0;
  int64_t row_stride = 1;  // in scales, from one block to the next; 0: all share one
  int64_t col_stride = 0;

  float at(int64_t n, int64_t k) const {
    return data[(row_offset + n) / block_rows * row_stride + (col_offset + k) / block_cols * col_stride];
  }
};

/// A weight matrix as it lies in a checkpoint (or in a temporary): element (n, k) is at
/// data[n * row_stride + k * col_stride], strides in elements, so a transpose is a view. An 8-bit
/// element stands for its value times scales.at(n, k).
struct WeightView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;  // N, output features
  int64_t cols = 0;  // K, input features
  int64_t row_stride = 0;
  int64_t col_stride = 1;
  WeightScales scales{};
};

/// Rows [first, first + count) of w.
inline WeightView row_range(const WeightView& w, int64_t first, int64_t count) {
  WeightView part = w;
  part.data = static_cast<const std::byte*>(w.data) +
              first * w.row_stride * static_cast<int64_t>(dtype_bytes(w.dtype));
  part.rows = count;
  part.scales.row_offset += first;
  return part;
}

inline WeightView transposed(const WeightView& w) {
  const WeightScales& s = w.scales;
  return {w.data,
          w.dtype,
          w.cols,
          w.rows,
          w.col_stride,
          w.row_stride,
          {s.data, s.block_cols, s.block_rows, s.col_offset, s.row_offset, s.col_stride, s.row_stride}};
}

}  // namespace duet
