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

constexpr int64_t kTile = 128;  // keys of the absorbed form: an output row is read and written once per tile
static_assert(kTile == Streams::kPlaces * kPanelColumns);

/// A tile of latent rows as products read them.
struct LatentTile {
  const std::byte* groups[kTile / kPanelColumns];  // of 16 rows, wherever each lies
  const std::byte* next[Streams::kPlaces];         // those of the tile that follows, in the cache
  bool has_next;
  int64_t row_bytes;

  /// Part `i` of `n` of the next tile's lines.
  Streams part_of_next(int64_t i, int64_t n) const {
    if (!has_next) return {};
    const int64_t lines = kPanelColumns * row_bytes / 64;  // of a place
    const int64_t from = i * lines / n, to = (i + 1) * lines / n;
    return {next, from * 64, (to - from) * Streams::kPlaces};
  }
};

/// Positions [first, first + keys) of a run that ends at `end`; `copy`: their rows, `row_bytes` apart, where
/// the cache's own can't be read.
inline LatentTile find_tile(const attention::CacheRows& cache, const int32_t* table, int64_t first,
                            int64_t keys, int64_t end, const std::byte* copy, int64_t row_bytes) {
  LatentTile tile;
  tile.row_bytes = row_bytes;
  for (int64_t g = 0; g * kPanelColumns < keys; ++g) {
    const int64_t key = g * kPanelColumns;
    tile.groups[g] = copy ? copy + key * row_bytes : attention::row_at(cache, table, first + key);
  }
  const int64_t next = first + kTile;
  tile.has_next = next < end;
  for (int64_t g = 0; tile.has_next && g < Streams::kPlaces; ++g)
    tile.next[g] = attention::row_at(cache, table, std::min(next + g * kPanelColumns, end - 1));
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
