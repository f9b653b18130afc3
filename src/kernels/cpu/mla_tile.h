// Pieces of MLA attention that both forms share: reading cache rows, packing a tile of keys and
// values the way the GEMM reads weights, and carving scratch. Called by mla*.cc only.
// A tile is a run of keys at absolute positions; only keys that some row of the block may see are
// read, so what lies in the cache beyond them can't leak into a result.
#pragma once

#include <algorithm>

#include "kernels/cpu/row_kernels.h"
#include "kernels/ops.h"

namespace duet::mla {

/// Hands out 64-byte aligned pieces of a buffer; with a null base it only counts.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}
  template <typename T>
  T* take(int64_t count) {
    const size_t at = used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

inline int64_t round_up(int64_t v, int64_t to) {
  return (v + to - 1) / to * to;
}

/// What packed tiles are stored as: bf16 feeds the bf16 dot product, f16 values stay f32.
inline DType tile_dtype(Rounding rounding) {
  return rounding == Rounding::kBf16 ? DType::kBf16 : DType::kF32;
}

/// Everything constant during one call.
struct Job {
  const KernelContext& cx;
  const MlaShape& shape;
  const MlaWeights& weights;
  ConstRows q;
  const LatentCache& cache;
  std::span<const AttentionSpan> spans;
  Rows out;
  const RowKernels& rows;

  int64_t width() const { return shape.lora + shape.rope; }   // of a cache row
  int64_t q_head() const { return shape.nope + shape.rope; }  // columns of a head in q
};

/// Cache rows of positions [first, first + keys) as f32, [keys, width].
void load_rows(const Job& job, const int32_t* block_table, int64_t first, int64_t keys, float* out);
/// The same bytes as they lie in the cache, for when no conversion is wanted.
void copy_rows(const Job& job, const int32_t* block_table, int64_t first, int64_t keys, void* out);

/// Asks for those rows to be brought to the second-level cache.
void prefetch_rows(const Job& job, const int32_t* block_table, int64_t first, int64_t keys);

/// Packs [keys, na + nb] (two row-major parts side by side, rounded on the way) as weights with
/// n = keys, k = na + nb. `temp`: key_temp_bytes(na + nb).
void pack_keys(const Job& job, const float* a, int64_t lda, int64_t na, const float* b, int64_t ldb,
               int64_t nb, int64_t keys, std::byte* temp, void* out);
/// Packs values [keys, n] (row-major) as weights with n = n, k = keys. `temp`: keys · n floats.
void pack_values(const Job& job, const float* values, int64_t stride, int64_t n, int64_t keys,
                 std::byte* temp, void* out);

inline size_t key_temp_bytes(int64_t k) {
  return static_cast<size_t>(16 * (k + 1)) * sizeof(float);
}

/// Expanded form of all expanded spans; absorbed form of all absorbed spans. `scratch` has room
/// for the *_bytes below.
void run_expanded(const Job& job, std::byte* scratch);
void run_absorbed(const Job& job, std::byte* scratch);
size_t expanded_bytes(const MlaShape& shape, int threads);
size_t absorbed_bytes(const MlaShape& shape, int threads);

/// Columns of one head in the packed kv_b: padded to whole panels, so a head is a slice.
inline int64_t expanded_columns(const MlaShape& shape) {
  return round_up(shape.nope + shape.v, kPanelColumns);
}

}  // namespace duet::mla
