// Grouped-query attention. One item of work is a block of a span's tokens and one kv head; its query rows,
// tokens × group, meet every packed tile of keys and values together. A generated token is a block of one
// token, so prefill and decode are one path and give the same bits.
// The context is cut into segments at absolute positions, whose softmax states are joined in ascending
// order: so few items with a long context can be split over threads without changing a bit.
#include "kernels/cpu/attention_tile.h"

namespace duet {

namespace {

using attention::Carver;

constexpr int64_t kTile = 128;       // keys: an output row is rescaled once per tile
constexpr int64_t kSegment = 1024;   // keys, whole tiles; joining costs a thousandth of computing one
constexpr int64_t kBlockRows = 512;  // query rows that share the packing of a tile (then 3 % of the work)
constexpr int64_t kSubRows = 64;     // rows per product: scores stay in the first-level caches
constexpr int64_t kItemsPerThread = 3;
constexpr int64_t kUnitsPerThread = 4;  // segments computed before they are joined

/// Softmax state of some query rows.
struct State {
  float* max;
  float* sum;
  float* out;  // [rows, head_dim]

  State from(int64_t row, int64_t head_dim) const { return {max + row, sum + row, out + row * head_dim}; }
};

struct Job {
  const KernelContext& cx;
  const GqaShape& shape;
  ConstRows q;
  const PagedCache& cache;
  std::span<const AttentionSpan> spans;
  Rows out;
  const RowKernels& rows;

  /// Keys and values of one head, side by side.
  attention::CacheRows cache_rows(int64_t kv_head) const {
    const int64_t width = 2 * shape.head_dim, bs = cache.block_size;
    const int64_t row_bytes = width * static_cast<int64_t>(dtype_bytes(cache.dtype));
    return {static_cast<const std::byte*>(cache.data) + kv_head * bs * row_bytes,
            cache.dtype,
            bs,
            shape.kv_heads * bs,
            width,
            row_bytes};
  }
  /// Whether the cache holds just what the products read.
  bool direct() const {
    const DType type = attention::tile_dtype(cx.rounding);
    return cache.dtype == type && cx.rounding != Rounding::kF16 &&
           (type == DType::kF32 || shape.head_dim % 2 == 0);
  }
};

int64_t sub_tokens(const GqaShape& s) {
  return std::max<int64_t>(1, kSubRows / s.group());
}
int64_t most_tokens(const GqaShape& s) {
  return std::max<int64_t>(1, kBlockRows / (sub_tokens(s) * s.group())) * sub_tokens(s);
}

struct Scratch {
  std::byte* raw;     // [kTile, 2 · head_dim] as it lies in the cache, or f32
  std::byte* temp;    // of the packers
  std::byte* keys;    // packed [kTile, head_dim]
  std::byte* values;  // packed [head_dim, kTile]
  float* q;           // [block rows, head_dim]
  float* scores;      // [sub rows, kTile]
  float* correction;  // [sub rows]
  State state, part;  // of the block: all segments so far, and a later one
  std::byte* gemm;
};

State carve_state(int64_t rows, int64_t head_dim, Carver& c) {
  State s;
  s.max = c.take<float>(rows);
  s.sum = c.take<float>(rows);
  s.out = c.take<float>(rows * head_dim);
  return s;
}

Scratch carve(const GqaShape& s, Carver& c) {
  const int64_t hd = s.head_dim, sub = sub_tokens(s) * s.group(), block = most_tokens(s) * s.group();
  Scratch t;
  t.raw = c.take<std::byte>(kTile * 2 * hd * int64_t{sizeof(float)});
  t.temp = c.take<std::byte>(std::max<int64_t>(static_cast<int64_t>(attention::key_temp_bytes(hd)),
                                               kTile * hd * int64_t{sizeof(float)}));
  t.keys = c.take<std::byte>(static_cast<int64_t>(packed_bytes(kTile, hd, DType::kF32)));
  t.values = c.take<std::byte>(static_cast<int64_t>(packed_bytes(hd, kTile, DType::kF32)));
  t.q = c.take<float>(block * hd);
  t.scores = c.take<float>(sub * kTile);
  t.correction = c.take<float>(sub);
  t.state = carve_state(block, hd, c);
  t.part = carve_state(block, hd, c);
  const size_t gemm = std::max(gemm_scratch_bytes(sub, kTile, hd, 1), gemm_scratch_bytes(sub, hd, kTile, 1));
  t.gemm = c.take<std::byte>(static_cast<int64_t>(gemm));
  return t;
}

/// Rows [row, row + tokens) of q and out, the first at `position`, and one kv head with its group.
struct Block {
  int64_t row, tokens, position;
  const int32_t* table;
  int64_t kv_head;

  int64_t end() const { return position + tokens; }  // keys beyond are nobody's business here
  int64_t segments() const { return (end() + kSegment - 1) / kSegment; }
};

/// What a call's threads share. With few items, those that are long are computed by segments.
struct Shared {
  State units;    // [kUnitsPerThread · threads] of a group each
  State states;   // [kItemsPerThread · threads] of a group each
  Block* blocks;  // [kItemsPerThread · threads]
  std::byte* threads;
  size_t per_thread;
};

Shared carve_shared(const GqaShape& s, int threads, Carver& c) {
  Shared g;
  g.units = carve_state(kUnitsPerThread * threads * s.group(), s.head_dim, c);
  g.states = carve_state(kItemsPerThread * threads * s.group(), s.head_dim, c);
  g.blocks = c.take<Block>(kItemsPerThread * threads);
  Carver one(nullptr);
  carve(s, one);
  g.per_thread = one.used();
  g.threads = c.take<std::byte>(static_cast<int64_t>(g.per_thread) * threads);
  return g;
}

Scratch scratch_of(const Job& job, const Shared& g, int thread) {
  Carver carver(g.threads + static_cast<size_t>(thread) * g.per_thread);
  return carve(job.shape, carver);
}

// ---- a tile of keys and values ----------------------------------------------------------------

/// Values [first, first + n) of the tile, `first` even: from rows of keys and values as they lie in the
/// cache.
void pack_values_as_they_lie(const Job& job, const std::byte* rows, int64_t first, int64_t n,
                             const Scratch& t) {
  const int64_t hd = job.shape.head_dim;
  attention::pack_values_as_they_lie(job.rows, job.cache.dtype,
                                     rows + hd * static_cast<int64_t>(dtype_bytes(job.cache.dtype)), 2 * hd,
                                     hd, first, n, attention::value_panel(job.cx.rounding, kTile), t.values);
}

/// The first `keys` values of the tile in t.raw.
void pack_values(const Job& job, int64_t keys, const Scratch& t) {
  const int64_t hd = job.shape.head_dim;
  if (job.direct()) {
    pack_values_as_they_lie(job, t.raw, 0, keys, t);
  } else {
    attention::pack_values(job.rows, job.cx.rounding, reinterpret_cast<const float*>(t.raw) + hd, 2 * hd, hd,
                           keys, kTile, t.temp, t.values);
  }
}

/// Packs the tile of keys [first, first + keys); those up to `end` that follow are prefetched. t.raw is left
/// with its rows where `keep` asks for it.
void pack_tile(const Job& job, const Block& block, int64_t first, int64_t keys, int64_t end, bool keep,
               const Scratch& t) {
  const int64_t hd = job.shape.head_dim;
  const attention::CacheRows cache = job.cache_rows(block.kv_head);
  if (!job.direct()) {
    auto* raw = reinterpret_cast<float*>(t.raw);
    attention::load_rows(job.rows, cache, block.table, first, keys, raw);
    attention::pack_keys(job.rows, job.cx.rounding, raw, 2 * hd, hd, raw, 0, 0, keys, t.temp, t.keys);
    pack_values(job, keys, t);
    return;
  }
  // Measured: with AVX2, rows of f32 that come from memory are read faster when a copy brings them.
  const bool in_place = !keep && attention::can_read_in_place(cache) &&
                        (cache.dtype == DType::kBf16 || job.cx.level >= CpuLevel::kAvx512);
  if (!in_place) attention::copy_rows(cache, block.table, first, keys, t.raw);
  const int64_t units = cache.row_bytes / 8;  // of 32 bits, in a key
  auto* to = reinterpret_cast<uint32_t*>(t.keys);
  for (int64_t key = 0; key < keys; key += kPanelColumns) {
    // The next tile comes to L2 while this one is packed; a whole tile at once would fill the queues of the
    // core and stall it.
    const int64_t next = first + kTile + key, n = std::min(kPanelColumns, keys - key);
    if (next < end) attention::prefetch_rows(cache, block.table, next, std::min(kPanelColumns, end - next));
    const std::byte* rows =
        in_place ? attention::row_at(cache, block.table, first + key) : t.raw + key * cache.row_bytes;
    job.rows.pack_columns(reinterpret_cast<const uint32_t*>(rows), 2 * units, n, units, to + key * units);
    pack_values_as_they_lie(job, rows, key, n, t);
  }
}

bool spoilt_values(const Job& job, int64_t keys, const Scratch& t) {
  const int64_t hd = job.shape.head_dim;
  if (!job.direct() || job.cache.dtype == DType::kF32) {
    return attention::any_spoilt(job.cx.rounding, reinterpret_cast<const float*>(t.raw) + hd, 2 * hd, hd,
                                 keys);
  }
  constexpr uint16_t kExponent = 0x7f80;  // all ones: infinite or not a number
  bool spoilt = false;
  for (int64_t key = 0; key < keys; ++key) {
    const auto* row = reinterpret_cast<const uint16_t*>(t.raw) + key * 2 * hd + hd;
    for (int64_t d = 0; d < hd; ++d) spoilt |= (row[d] & kExponent) == kExponent;
  }
  return spoilt;
}

// ---- query rows against a tile ----------------------------------------------------------------

/// Tokens [r, r + tokens) of the block against a packed tile, of which `keys` are multiplied.
void attend(const Job& job, const Block& block, int64_t r, int64_t tokens, int64_t first, int64_t keys,
            bool fresh, const State& state, const Scratch& t) {
  const int64_t hd = job.shape.head_dim, row = r * job.shape.group(), rows = tokens * job.shape.group();
  const int64_t first_valid = block.position + r - first + 1;
  const int64_t seen = std::min(keys, first_valid + tokens - 1);  // by the last of these tokens
  const State into = state.from(row, hd);
  SoftmaxTile tile;
  tile.scores = t.scores;
  tile.stride = kTile;
  tile.rows = rows;
  tile.keys = seen;
  tile.first_valid = first_valid;
  tile.step = 1;
  tile.alike = job.shape.group();
  tile.scale = job.shape.scale;
  tile.first = fresh;
  tile.max = into.max;
  tile.sum = into.sum;
  tile.correction = t.correction;
  attention::attend(job.cx, job.rows,
                    {{t.q + row * hd, rows, hd}, t.keys, t.values, tile, {into.out, rows, hd}}, t.gemm);
}

/// All keys of one segment that the block sees, into `into`.
void run_segment(const Job& job, const Block& block, int64_t segment, const State& into, const Scratch& t) {
  const int64_t begin = segment * kSegment, end = std::min(begin + kSegment, block.end());
  for (int64_t first = begin; first < end; first += kTile) {
    const int64_t keys = std::min(kTile, end - first);
    int64_t r = std::max<int64_t>(0, first - block.position);  // earlier tokens do not see the tile
    // Tokens before this one see only a part of it.
    const int64_t whole = std::clamp(first + keys - 1 - block.position, r, block.tokens);
    pack_tile(job, block, first, keys, block.end(), whole > r, t);
    if (whole > r && spoilt_values(job, keys, t)) {
      for (; r < whole; ++r) {
        const int64_t seen = block.position + r - first + 1;
        pack_values(job, seen, t);
        attend(job, block, r, 1, first, seen, first == begin, into, t);
      }
      pack_values(job, keys, t);
    }
    for (const int64_t step = sub_tokens(job.shape); r < block.tokens; r += step) {
      attend(job, block, r, std::min(step, block.tokens - r), first, keys, first == begin, into, t);
    }
  }
}

// ---- blocks -----------------------------------------------------------------------------------

void load_queries(const Job& job, const Block& block, const Scratch& t) {
  const int64_t columns = job.shape.group() * int64_t{job.shape.head_dim};
  for (int64_t r = 0; r < block.tokens; ++r) {
    std::copy_n(job.q.row(block.row + r) + block.kv_head * columns, columns, t.q + r * columns);
  }
}

/// Joins the state of the segment that begins at `begin`, for the tokens that see it.
void join(const Job& job, const Block& block, int64_t begin, const State& state, const State& later) {
  const int64_t hd = job.shape.head_dim, group = job.shape.group();
  for (int64_t i = std::max<int64_t>(0, begin - block.position) * group; i < block.tokens * group; ++i) {
    const State to = state.from(i, hd), from = later.from(i, hd);
    attention::join_softmax(job.rows, *to.max, *to.sum, to.out, *from.max, *from.sum, from.out, hd);
  }
}

void write_out(const Job& job, const Block& block, const State& state) {
  const int64_t hd = job.shape.head_dim, group = job.shape.group();
  for (int64_t i = 0; i < block.tokens * group; ++i) {
    float* out = job.out.row(block.row + i / group) + (block.kv_head * group + i % group) * hd;
    job.rows.scale(state.out + i * hd, 1.0f / state.sum[i], hd, out);
  }
}

void run_block(const Job& job, const Block& block, const Scratch& t) {
  load_queries(job, block, t);
  run_segment(job, block, 0, t.state, t);
  for (int64_t segment = 1; segment < block.segments(); ++segment) {
    run_segment(job, block, segment, t.part, t);
    join(job, block, segment * kSegment, t.state, t.part);
  }
  write_out(job, block, t.state);
}

// ---- distribution over threads ----------------------------------------------------------------

/// How spans are cut into items. The cut moves work between threads and never changes a result.
struct Items {
  std::span<const AttentionSpan> spans;
  int64_t heads;
  int64_t block_tokens;
  int64_t count = 0;

  Items(const Job& job, int64_t tokens) : spans(job.spans), heads(job.shape.kv_heads), block_tokens(tokens) {
    for (const AttentionSpan& span : spans) count += blocks(span) * heads;
  }
  int64_t blocks(const AttentionSpan& span) const { return (span.rows + block_tokens - 1) / block_tokens; }

  Block at(int64_t item) const {
    for (const AttentionSpan& span : spans) {
      const int64_t n = blocks(span) * heads;
      if (item >= n) {
        item -= n;
        continue;
      }
      // Late blocks see most keys and cost most: they go first.
      const int64_t first = (blocks(span) - 1 - item / heads) * block_tokens;
      return {span.first_row + first, std::min(block_tokens, span.rows - first), span.start_position + first,
              span.block_table, item % heads};
    }
    DUET_CHECK(false && "item beyond the last span");
    return {};
  }
};

Items choose_items(const Job& job) {
  Items items(job, most_tokens(job.shape));
  const int64_t wanted = job.cx.threads() == 1 ? 1 : kItemsPerThread * job.cx.threads();
  while (items.count < wanted && items.block_tokens > sub_tokens(job.shape)) {
    items = Items(job, std::max(items.block_tokens / 2, sub_tokens(job.shape)));
  }
  return items;
}

struct Unit {
  int64_t block, segment;
};

Unit find_unit(std::span<const Block> blocks, int64_t unit) {
  for (size_t b = 0; b < blocks.size(); ++b) {
    if (unit < blocks[b].segments()) return {static_cast<int64_t>(b), unit};
    unit -= blocks[b].segments();
  }
  DUET_CHECK(false && "unit beyond the last block");
  return {};
}

/// Blocks of one token, fewer than keep all threads busy: their segments are computed apart.
void run_split(const Job& job, const Shared& g, std::span<const Block> blocks) {
  const int64_t hd = job.shape.head_dim, group = job.shape.group();
  const int64_t most = kUnitsPerThread * job.cx.threads();
  int64_t units = 0;
  for (const Block& block : blocks) units += block.segments();
  // Where a unit's state goes: a block's first segment begins the block's own.
  const auto state_of = [&](const Unit& unit, int64_t i) {
    return unit.segment == 0 ? g.states.from(unit.block * group, hd) : g.units.from(i * group, hd);
  };
  for (int64_t wave = 0; wave < units; wave += most) {  // bounds the scratch for any context
    const int64_t count = std::min(most, units - wave);
    attention::for_items(job.cx, count, [&](int i, int thread) {
      const Unit unit = find_unit(blocks, wave + i);
      const Block& block = blocks[static_cast<size_t>(unit.block)];
      const Scratch t = scratch_of(job, g, thread);
      load_queries(job, block, t);
      run_segment(job, block, unit.segment, state_of(unit, i), t);
    });
    for (int64_t i = 0; i < count; ++i) {
      const Unit unit = find_unit(blocks, wave + i);
      if (unit.segment == 0) continue;
      join(job, blocks[static_cast<size_t>(unit.block)], unit.segment * kSegment,
           g.states.from(unit.block * group, hd), state_of(unit, i));
    }
  }
  for (size_t b = 0; b < blocks.size(); ++b)
    write_out(job, blocks[b], g.states.from(static_cast<int64_t>(b) * group, hd));
}

void run_items(const Job& job, const Shared& g, const Items& items) {
  if (job.cx.threads() == 1 || items.count > kItemsPerThread * job.cx.threads()) {
    attention::for_items(job.cx, items.count, [&](int item, int thread) {
      run_block(job, items.at(item), scratch_of(job, g, thread));
    });
    return;
  }
  // Whole ones in front, those to be computed by segments behind.
  int64_t whole = 0, apart = items.count;
  for (int64_t i = 0; i < items.count; ++i) {
    const Block block = items.at(i);
    g.blocks[block.tokens == 1 && block.segments() > 1 ? --apart : whole++] = block;
  }
  attention::for_items(job.cx, whole, [&](int item, int thread) {
    run_block(job, g.blocks[item], scratch_of(job, g, thread));
  });
  if (apart < items.count) run_split(job, g, {g.blocks + apart, static_cast<size_t>(items.count - apart)});
}

}  // namespace

void write_kv(const KernelContext& cx, const GqaShape& shape, ConstRows k, ConstRows v,
              std::span<const int64_t> slots, const PagedCache& cache) {
  const int64_t hd = shape.head_dim, bs = cache.block_size;
  DUET_CHECK(k.cols == shape.kv_heads * hd && v.cols == k.cols && k.rows == v.rows &&
             static_cast<int64_t>(slots.size()) == k.rows);
  const RowKernels& kernels = row_kernels(cx.level);
  const auto element = static_cast<int64_t>(dtype_bytes(cache.dtype));
  for (int64_t r = 0; r < k.rows; ++r) {
    const int64_t slot = slots[static_cast<size_t>(r)];
    DUET_CHECK(slot >= 0);
    for (int64_t h = 0; h < shape.kv_heads; ++h) {
      const int64_t row = (slot / bs * shape.kv_heads + h) * bs + slot % bs;
      std::byte* to = static_cast<std::byte*>(cache.data) + row * 2 * hd * element;
      attention::store_rounded(kernels, cx.rounding, k.row(r) + h * hd, hd, cache.dtype, to);
      attention::store_rounded(kernels, cx.rounding, v.row(r) + h * hd, hd, cache.dtype, to + hd * element);
    }
  }
}

void gqa_attention(const KernelContext& cx, const GqaShape& shape, ConstRows q, const PagedCache& cache,
                   std::span<const AttentionSpan> spans, Rows out) {
  if (shape.heads == 0 || spans.empty()) return;
  const int64_t width = int64_t{shape.heads} * shape.head_dim;
  DUET_CHECK(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0 && q.cols == width &&
             out.cols == width && cache.block_size > 0 && cx.scratch);
  for (const AttentionSpan& span : spans)
    DUET_CHECK(span.first_row >= 0 && span.first_row + span.rows <= q.rows && q.rows <= out.rows);
  const Job job{cx, shape, q, cache, spans, out, row_kernels(cx.level)};
  ArenaScope scope(*cx.scratch);
  Carver carver(cx.scratch->take<std::byte>(gqa_scratch_bytes(shape, cx.threads())));
  const Shared g = carve_shared(shape, cx.threads(), carver);
  run_items(job, g, choose_items(job));
}

size_t gqa_scratch_bytes(const GqaShape& shape, int threads) {
  if (shape.heads == 0) return 0;
  Carver carver(nullptr);
  carve_shared(shape, threads, carver);
  return carver.used();
}

}  // namespace duet
