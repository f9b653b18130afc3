// Values on their way to and from the wire: rounding, the rank-ordered sum, and rows with strides.
// Used by the Communicator alone. Element-wise adds and conversions only, no fused multiply-add and
// no reordering, so every vector width gives the same bits.
#pragma once

#include <cstddef>
#include <span>

#include "tensor/view.h"

namespace duet::wire {

/// True when the rows of a view follow each other without gaps.
template <typename T>
bool is_dense(const MatrixView<T>& v) {
  return v.stride == v.cols || v.rows <= 1;
}

/// Rows → densely packed wire values, each rounded to `dtype` (kF32 or kBf16).
void encode(ConstRows in, DType dtype, std::byte* out);
/// The other way; with `add` the values are added to what stands in `out`.
void decode(const std::byte* in, DType dtype, Rows out, bool add);

/// out[i] (+)= Σ_r sources[r][i], float32, starting from rank 0's value; sources hold `dtype`;
/// `out` may be one of them.
void ordered_sum(std::span<const std::byte* const> sources, DType dtype, Rows out, bool add);
/// The same sum rounded to `dtype`; `out` may be one of the sources.
void ordered_sum_rounded(std::span<const std::byte* const> sources, DType dtype, std::byte* out,
                         size_t count);

}  // namespace duet::wire
