// The absorbed form over int8 rows. Queries and probabilities get 16 bits (13 for the rotated part), which
// costs nothing next to the 8 of the cache and leaves every sum of a group an exact integer: products take
// half of what float32 takes at avx2, and give the same bits in any order.
#include "kernels/cpu/mla_latent8.h"

#include <cstring>

namespace duet::mla {

namespace {

constexpr int64_t kGroup = Latent8Row::kGroup;
constexpr int kMost16 = 32767;  // of a query's and a probability's integers
// Sums of a group of latent values, of a group of rotated ones, and of a tile's keys, in 32 bits.
static_assert(int64_t{kMost16} * Latent8Row::kMost * std::max(kGroup, kTile) < (int64_t{1} << 31));
static_assert(int64_t{Latent8Row::kRopeMost} * Latent8Row::kRopeMost * kGroup < (int64_t{1} << 31));

/// A row of int16: the groups of the latent, then those of the rotated part, each from an even place on.
struct Wide {
  explicit Wide(const MlaShape& s) : latent(round_up(s.lora, 2)), width(latent + round_up(s.rope, 2)) {}
  int64_t latent, width;
};

/// Calls body(first, count, scale): a group of values at `first` of a row, with the number of its scale.
template <typename Body>
void for_groups(const MlaShape& s, const Body& body) {
  const Latent8Row row = row_of(s);
  for (int64_t g = 0; g < row.groups(); ++g)
    body(g * kGroup, std::min<int64_t>(kGroup, s.lora - g * kGroup), g);
  for (int64_t d = 0; d < s.rope; d += kGroup)
    body(Wide(s).latent + d, std::min<int64_t>(kGroup, s.rope - d), row.groups());
}

struct Scratch {
  int16_t* rows;         // [16, width]: queries of some heads, then keys
  int16_t* query;        // [heads in sixteens][width / 2][16][2]
  float* query_scales;   // [latent, rope][heads in sixteens]
  std::byte* copy;       // [kTile] of the cache's rows, where they don't lie as they are read
  float* key_scales;     // [scales of a row, kTile]
  float* turned;         // [16 keys, heads in sixteens]
  float* scores;         // [heads, kTile]
  float* correction;     // [heads]
  int16_t* probability;  // [heads, kTile]
  float* row_scales;     // [heads]
  int16_t* values;       // [kTile / 2][16][2]
  float* edge;           // [heads, 16]
};

Scratch carve(const MlaShape& s, Carver& c) {
  const Latent8Row row = row_of(s);
  const int64_t width = Wide(s).width, heads = s.heads, padded = round_up(heads, kPanelColumns);
  Scratch t;
  t.rows = c.take<int16_t>(kPanelColumns * width);
  t.query = c.take<int16_t>(padded * width);
  t.query_scales = c.take<float>(2 * padded);
  t.copy = c.take<std::byte>(kTile * row.bytes());
  t.key_scales = c.take<float>(row.scales() * kTile);
  t.turned = c.take<float>(kPanelColumns * (padded + kPanelColumns));
  t.scores = c.take<float>(heads * kTile);
  t.correction = c.take<float>(heads);
  t.probability = c.take<int16_t>(heads * kTile);
  t.row_scales = c.take<float>(heads);
  t.values = c.take<int16_t>(kTile * kPanelColumns);
  t.edge = c.take<float>(heads * kPanelColumns);
  return t;
}

/// Queries as integers, in panels of 16 heads.
void pack_queries(const Job& job, const float* query, const Scratch& t) {
  const MlaShape& s = job.shape;
  const Wide wide(s);
  const int64_t padded = round_up(s.heads, kPanelColumns);
  std::fill_n(t.query_scales, 2 * padded, 0.0f);
  std::fill_n(t.rows, kPanelColumns * wide.width, int16_t{0});
  for (int64_t head = 0; head < s.heads; head += kPanelColumns) {
    const int64_t count = std::min<int64_t>(kPanelColumns, s.heads - head);
    for (int64_t h = 0; h < count; ++h) {
      const float* from = query + (head + h) * job.width();
      int16_t* to = t.rows + h * wide.width;
      t.query_scales[head + h] = job.rows.to_i16(from, nullptr, s.lora, kMost16, to);
      t.query_scales[padded + head + h] =
          job.rows.to_i16(from + s.lora, nullptr, s.rope, Latent8Row::kRopeMost, to + wide.latent);
    }
    job.rows.pack_columns(reinterpret_cast<const uint32_t*>(t.rows), wide.width / 2, count, wide.width / 2,
                          reinterpret_cast<uint32_t*>(t.query + head * wide.width));
  }
}

LatentTile load_tile(const Job& job, const int32_t* table, int64_t first, int64_t keys, int64_t end,
                     const Scratch& t) {
  const attention::CacheRows cache = job.cache_rows();
  const bool in_place = attention::can_read_in_place(cache);
  if (!in_place) attention::copy_rows(cache, table, first, keys, t.copy);
  const LatentTile tile =
      find_tile(cache, table, first, keys, end, in_place ? nullptr : t.copy, cache.row_bytes);
  const int64_t scales = row_of(job.shape).scales();
  for (int64_t key = 0; key < keys; ++key) {
    const std::byte* row = tile.groups[key / kPanelColumns] + key % kPanelColumns * cache.row_bytes;
    for (int64_t g = 0; g < scales; ++g)
      std::memcpy(t.key_scales + g * kTile + key, row + g * 4, sizeof(float));
  }
  return tile;
}

/// 16 keys or fewer as int16.
void widen_keys(const Job& job, const std::byte* from, int64_t count, const Scratch& t) {
  const MlaShape& s = job.shape;
  const Latent8Row row = row_of(s);
  const Wide wide(s);
  for (int64_t r = 0; r < count; ++r, from += row.bytes()) {
    int16_t* to = t.rows + r * wide.width;
    job.rows.i8_to_i16(reinterpret_cast<const int8_t*>(from + row.latent_at()), s.lora, to);
    if (s.lora % 2) to[s.lora] = 0;
    std::memcpy(to + wide.latent, from + row.rope_at(), static_cast<size_t>(s.rope) * sizeof(int16_t));
    if (s.rope % 2) to[wide.latent + s.rope] = 0;
  }
}

/// scores [heads, kTile] = query · keys.
void score(const Job& job, const LatentTile& tile, int64_t keys, const Scratch& t) {
  const MlaShape& s = job.shape;
  const Wide wide(s);
  const int64_t padded = round_up(s.heads, kPanelColumns);
  const int64_t calls = row_of(s).groups() + (s.rope + kGroup - 1) / kGroup;  // of for_groups
  float* back = t.turned + kPanelColumns * padded;
  for (int64_t key = 0; key < keys; key += kPanelColumns) {
    const int64_t rows = std::min(kPanelColumns, keys - key);
    widen_keys(job, tile.groups[key / kPanelColumns], rows, t);
    const int64_t part = key / kPanelColumns * calls;
    int64_t call = 0;
    for_groups(s, [&](int64_t first, int64_t count, int64_t scale) {
      const bool rope = first >= wide.latent;
      IntProduct p;
      p.a = t.rows + first;
      p.a_stride = wide.width;
      p.rows = rows;
      p.pairs = (count + 1) / 2;
      p.row_scales = t.key_scales + scale * kTile + key;
      p.ldc = padded;
      p.load_c = first > 0;
      p.ahead = tile.part_of_next(part + call++, Streams::kPlaces * calls);
      for (int64_t head = 0; head < s.heads; head += kPanelColumns, p.ahead.lines = 0) {
        p.w = t.query + head * wide.width + first * kPanelColumns;
        p.column_scales = t.query_scales + (rope ? padded : 0) + head;
        p.c = t.turned + head;
        job.rows.multiply_i16(p);
      }
    });
    for (int64_t head = 0; head < s.heads; head += kPanelColumns) {
      const int64_t count = std::min<int64_t>(kPanelColumns, s.heads - head);
      job.rows.pack_columns(reinterpret_cast<const uint32_t*>(t.turned + head), padded, rows, count,
                            reinterpret_cast<uint32_t*>(back));
      for (int64_t h = 0; h < count; ++h)
        std::copy_n(back + h * kPanelColumns, kPanelColumns, t.scores + (head + h) * kTile + key);
    }
  }
}

/// out [heads, lora] (+)= probabilities [heads, kTile] · the tile's latent values. A key's scale is its
/// probability's business: with it, integers of all keys mean the same.
void add_values(const Job& job, const LatentTile& tile, int64_t keys, bool load, float* out,
                const Scratch& t) {
  const MlaShape& s = job.shape;
  const Latent8Row row = row_of(s);
  alignas(64) float ones[kPanelColumns];
  std::fill_n(ones, kPanelColumns, 1.0f);
  IntProduct p;
  p.a = t.probability;
  p.a_stride = kTile;
  p.rows = s.heads;
  p.pairs = (keys + 1) / 2;
  p.w = t.values;
  p.row_scales = t.row_scales;
  p.column_scales = ones;
  for (int64_t g = 0; g < row.groups(); ++g) {
    for (int64_t h = 0; h < s.heads; ++h) {
      int16_t* to = t.probability + h * kTile;
      t.row_scales[h] = job.rows.to_i16(t.scores + h * kTile, t.key_scales + g * kTile, keys, kMost16, to);
      if (keys % 2) to[keys] = 0;
    }
    const int64_t end = std::min<int64_t>(s.lora, (g + 1) * kGroup);
    for (int64_t column = g * kGroup; column < end; column += kPanelColumns) {
      const int64_t columns = std::min(kPanelColumns, end - column);
      for (int64_t key = 0; key < keys; key += kPanelColumns) {
        const std::byte* from = tile.groups[key / kPanelColumns] + row.latent_at() + column;
        job.rows.pack_rows_i8(reinterpret_cast<const int8_t*>(from), row.bytes(),
                              std::min(kPanelColumns, keys - key), columns, t.values + key * kPanelColumns);
      }
      const bool whole = columns == kPanelColumns;  // else beyond them lies something else
      for (int64_t h = 0; !whole && load && h < s.heads; ++h)
        std::copy_n(out + h * s.lora + column, columns, t.edge + h * kPanelColumns);
      p.c = whole ? out + column : t.edge;
      p.ldc = whole ? int64_t{s.lora} : kPanelColumns;
      p.load_c = load;
      job.rows.multiply_i16(p);
      for (int64_t h = 0; !whole && h < s.heads; ++h)
        std::copy_n(t.edge + h * kPanelColumns, columns, out + h * s.lora + column);
    }
  }
}

}  // namespace

void store_row8(const RowKernels& kernels, const Latent8Row& row, const float* latent, const float* k_rope,
                std::byte* to) {
  int16_t wide[kGroup];
  const auto put_scale = [&](int64_t index, float scale) { std::memcpy(to + index * 4, &scale, 4); };
  for (int64_t g = 0; g < row.groups(); ++g) {
    const int64_t first = g * kGroup, count = std::min(kGroup, row.lora - first);
    put_scale(g, kernels.to_i16(latent + first, nullptr, count, Latent8Row::kMost, wide));
    for (int64_t i = 0; i < count; ++i)
      to[row.latent_at() + first + i] = static_cast<std::byte>(static_cast<int8_t>(wide[i]));
  }
  put_scale(row.groups(), kernels.to_i16(k_rope, nullptr, row.rope, Latent8Row::kRopeMost,
                                         reinterpret_cast<int16_t*>(to + row.rope_at())));
}

void load_row8(const RowKernels& kernels, const Latent8Row& row, const std::byte* from, float* out) {
  float scale;
  for (int64_t g = 0; g < row.groups(); ++g) {
    const int64_t first = g * kGroup, count = std::min(kGroup, row.lora - first);
    std::memcpy(&scale, from + g * 4, sizeof(scale));
    kernels.i8_to_f32(reinterpret_cast<const int8_t*>(from + row.latent_at() + first), scale, count,
                      out + first);
  }
  std::memcpy(&scale, from + row.groups() * 4, sizeof(scale));
  const auto* rope = reinterpret_cast<const int16_t*>(from + row.rope_at());
  for (int64_t i = 0; i < row.rope; ++i) out[row.lora + i] = static_cast<float>(rope[i]) * scale;
}

size_t segment8_bytes(const MlaShape& shape) {
  Carver carver(nullptr);
  carve(shape, carver);
  return carver.used();
}

void attend_segment8(const Job& job, const int32_t* block_table, const float* query, int64_t begin,
                     int64_t end, const Partial& into, std::byte* scratch) {
  const MlaShape& s = job.shape;
  Carver carver(scratch);
  const Scratch t = carve(s, carver);
  pack_queries(job, query, t);
  for (int64_t first = begin; first < end; first += kTile) {
    const int64_t keys = std::min(kTile, end - first);
    const LatentTile tile = load_tile(job, block_table, first, keys, end, t);
    score(job, tile, keys, t);
    const SoftmaxTile softmax =
        softmax_of_heads(s, t.scores, kTile, keys, first == begin, into, t.correction);
    job.rows.softmax(softmax);
    if (first > begin) attention::correct(job.rows, softmax, {into.out, s.heads, s.lora});
    add_values(job, tile, keys, first > begin, into.out, t);
  }
}

}  // namespace duet::mla
