// Pieces that every kind of attention shares: reading and writing rows of a paged cache, packing a tile of
// keys and values the way the GEMM reads weights, and carving scratch. Called by mla*.cc and gqa.cc only.
// A tile is a run of keys at absolute positions; only keys that some row of the block may see are
// read, so what lies in the cache beyond them can't leak into a result.
#pragma once

#include <algorithm>

#include "kernels/cpu/row_kernels.h"
#include "kernels/ops.h"

namespace duet::attention {

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

/// Rows of a paged cache that belong together: those of a layer, or of one of its heads.
struct CacheRows {
  const std::byte* data;
  DType dtype;
  int64_t block_size;  // tokens
  int64_t block_rows;  // rows from one block to the next
  int64_t width;       // elements of a row
  int64_t row_bytes;
};

inline const std::byte* row_at(const CacheRows& cache, const int32_t* block_table, int64_t position) {
  const int64_t inside = position % cache.block_size;
  return cache.data +
         (int64_t{block_table[position / cache.block_size]} * cache.block_rows + inside) * cache.row_bytes;
}

/// Rows of positions [first, first + keys) as f32, [keys, width].
void load_rows(const RowKernels& kernels, const CacheRows& cache, const int32_t* block_table, int64_t first,
               int64_t keys, float* out);
/// The same bytes as they lie in the cache, for when no conversion is wanted.
void copy_rows(const CacheRows& cache, const int32_t* block_table, int64_t first, int64_t keys, void* out);
/// Asks for those rows to be brought to the second-level cache.
void prefetch_rows(const CacheRows& cache, const int32_t* block_table, int64_t first, int64_t keys);

/// Rounds `n` floats as the products round their inputs.
void round_in_place(const RowKernels& kernels, Rounding rounding, float* values, int64_t n);

/// Writes `n` floats as `dtype`, rounded to `rounding` first where that is narrower: a value that the
/// products would round anyway must not depend on the cache's type.
void store_rounded(const RowKernels& kernels, Rounding rounding, const float* from, int64_t n, DType dtype,
                   std::byte* to);

/// Packs [keys, na + nb] (two row-major parts side by side, rounded on the way) as weights with
/// n = keys, k = na + nb. `temp`: key_temp_bytes(na + nb).
void pack_keys(const RowKernels& kernels, Rounding rounding, const float* a, int64_t lda, int64_t na,
               const float* b, int64_t ldb, int64_t nb, int64_t keys, std::byte* temp, void* out);
/// Packs values [keys, n] (row-major) as weights with n = n, k = keys, in panels with room for `room` keys.
/// `temp`: keys · n floats.
void pack_values(const RowKernels& kernels, Rounding rounding, const float* values, int64_t stride, int64_t n,
                 int64_t keys, int64_t room, std::byte* temp, void* out);

/// Whether a panel of keys can be read where it lies in the cache: it does not cross blocks.
inline bool can_read_in_place(const CacheRows& cache) {
  return cache.block_size % kPanelColumns == 0;
}

/// Keys [first, first + n) of a tile, `first` even, from rows that lie as the products read them (`stride`
/// elements apart, bf16 or f32), as values [columns, keys]; `panel` as value_panel() has it.
void pack_values_as_they_lie(const RowKernels& kernels, DType dtype, const std::byte* rows, int64_t stride,
                             int64_t columns, int64_t first, int64_t n, int64_t panel, std::byte* out);

/// Elements of a panel of packed values, `keys` long.
inline int64_t value_panel(Rounding rounding, int64_t keys) {
  return kPanelColumns * (rounding == Rounding::kBf16 ? round_up(keys, 2) : keys);
}

inline size_t key_temp_bytes(int64_t k) {
  return static_cast<size_t>(16 * (k + 1)) * sizeof(float);
}

/// Whether some value is, or will be once rounded, not finite. Then 0 · value is not 0, and a row must not
/// even multiply keys that it does not see.
bool any_spoilt(Rounding rounding, const float* values, int64_t stride, int64_t n, int64_t keys);

/// Rows of queries against a tile of keys and values that are packed as weights of tile_dtype().
struct TileStep {
  ConstRows q;  // [rows, width of a key]
  const void* keys = nullptr;
  const void* values = nullptr;  // in panels with room for tile.stride keys
  SoftmaxTile tile;              // tile.keys are multiplied: what the last row sees
  Rows out;                      // [rows, width of a value]; tile.first: written, else joined with
};
/// Scores, softmax, values. `gemm`: gemm_scratch_bytes() of both products.
void attend(const KernelContext& cx, const RowKernels& kernels, const TileStep& step, std::byte* gemm);
/// Multiplies each row of what came before the tile by what its softmax left in tile.correction.
void correct(const RowKernels& kernels, const SoftmaxTile& tile, Rows out);

/// One row: (max, sum, out [n]) ← itself joined with a later, separately computed run of keys.
void join_softmax(const RowKernels& kernels, float& max, float& sum, float* out, float later_max,
                  float later_sum, const float* later_out, int64_t n);

/// body(item, thread) for item in [0, items), on the pool where there is one.
template <typename Body>
void for_items(const KernelContext& cx, int64_t items, const Body& body) {
  if (cx.pool) {
    cx.pool->parallel_for(static_cast<int>(items), [&body](int item, int thread) { body(item, thread); });
  } else {
    for (int item = 0; item < items; ++item) body(item, 0);
  }
}

}  // namespace duet::attention
