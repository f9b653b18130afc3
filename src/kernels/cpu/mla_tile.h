// What both forms of MLA attention share: one call's job, in the terms of attention_tile.h. Included by
// mla*.cc only.
#pragma once

#include "kernels/cpu/attention_tile.h"

namespace duet::mla {

using attention::Carver;
using attention::key_temp_bytes;
using attention::round_up;

/// Everything constant during one call.
struct Job {
  const KernelContext& cx;
  const MlaShape& shape;
  const MlaWeights& weights;
  ConstRows q;
  const PagedCache& cache;
  std::span<const AttentionSpan> spans;
  Rows out;
  const RowKernels& rows;

  int64_t width() const { return shape.lora + shape.rope; }   // values of a cache row
  int64_t q_head() const { return shape.nope + shape.rope; }  // columns of a head in q
  attention::CacheRows cache_rows() const {
    return {
        static_cast<const std::byte*>(cache.data), cache.dtype, cache.block_size, cache.block_size, width(),
        latent_row_bytes(shape, cache.dtype)};
  }
};

/// Where the softmax of a run of keys stands, for all heads of a token.
struct Partial {
  float* max;  // [heads]
  float* sum;
  float* out;  // [heads, lora]
};

/// The softmax of a tile of keys that all heads of a token see; `first`: of the run.
inline SoftmaxTile softmax_of_heads(const MlaShape& shape, float* scores, int64_t stride, int64_t keys,
                                    bool first, const Partial& into, float* correction) {
  SoftmaxTile tile;
  tile.scores = scores;
  tile.stride = stride;
  tile.rows = shape.heads;
  tile.keys = keys;
  tile.first_valid = keys;
  tile.step = 0;
  tile.scale = shape.scale;
  tile.first = first;
  tile.max = into.max;
  tile.sum = into.sum;
  tile.correction = correction;
  return tile;
}

/// Rows of positions [first, first + keys) as f32, [keys, lora + rope].
void load_latent(const Job& job, const int32_t* block_table, int64_t first, int64_t keys, float* out);

/// Expanded form of all expanded spans; absorbed form of all absorbed spans. `scratch` has room
/// for the *_bytes below.
void run_expanded(const Job& job, ExpandedTiles* tiles, std::byte* scratch);
void run_absorbed(const Job& job, std::byte* scratch);
size_t expanded_bytes(const MlaShape& shape, int threads);
size_t absorbed_bytes(const MlaShape& shape, int threads);

/// Columns of one head in the packed kv_b: padded to whole panels, so a head is a slice.
inline int64_t expanded_columns(const MlaShape& shape) {
  return round_up(shape.nope + shape.v, kPanelColumns);
}

}  // namespace duet::mla
