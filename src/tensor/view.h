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

/// A weight matrix as it lies in a checkpoint (or in a temporary): element (n, k) is at
/// data[n * row_stride + k * col_stride], strides in elements, so a transpose is a view.
struct WeightView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;  // N, output features
  int64_t cols = 0;  // K, input features
  int64_t row_stride = 0;
  int64_t col_stride = 1;
};

}  // namespace duet
