// MLA for generated tokens: the up-projections are absorbed into query and output, so the heads of
// a token attend to the latent rows themselves, [heads, lora + rope] against [keys, lora + rope].
// A batch of tokens goes through three phases: project queries (split by head), attend (split by
// token and segment of the context), project outputs (split by head). A segment is a fixed run of
// positions and segments are merged in ascending order, so the split that keeps several threads
// busy on one long context depends on the token's position alone.
#include "kernels/cpu/mla_tile.h"

namespace duet::mla {

namespace {

constexpr int64_t kTile = 128;      // keys: an output row is read and written once per tile
constexpr int64_t kSegment = 1024;  // keys, whole tiles; merging costs a thousandth of computing one
constexpr int64_t kBatch = 32;      // tokens that share one reading of the up-projections
constexpr int64_t kUnitsPerThread = 4;

struct Token {
  int64_t row, position;
  const int32_t* table;
};

struct ThreadScratch {
  float* gather;  // [kBatch, max(nope, v)]
  float* latent;  // [kTile, lora + rope]
  std::byte* temp;
  std::byte* keys;    // packed [kTile, lora + rope]
  std::byte* values;  // packed [lora, kTile]
  float* scores;      // [heads, kTile]
  float* correction;  // [heads]
  std::byte* gemm;
};

struct Partial {  // of one unit: one segment of one token
  float* max;     // [heads]
  float* sum;
  float* out;  // [heads, lora]
};

struct Shared {
  float* query;   // [kBatch, heads, lora + rope]
  Partial state;  // [kBatch] of each
  Partial units;  // [units] of each
  int64_t unit_count;
  std::byte* threads;
  size_t per_thread;
};

ThreadScratch carve_thread(const MlaShape& s, Carver& c) {
  const int64_t width = s.lora + s.rope, heads = s.heads;
  ThreadScratch t;
  t.gather = c.take<float>(kBatch * std::max(s.nope, s.v));
  t.latent = c.take<float>(kTile * width);
  t.temp = c.take<std::byte>(std::max<int64_t>(static_cast<int64_t>(key_temp_bytes(width)),
                                               kTile * s.lora * int64_t{sizeof(float)}));
  t.keys = c.take<std::byte>(static_cast<int64_t>(packed_bytes(kTile, width, DType::kF32)));
  t.values = c.take<std::byte>(static_cast<int64_t>(packed_bytes(s.lora, kTile, DType::kF32)));
  t.scores = c.take<float>(heads * kTile);
  t.correction = c.take<float>(heads);
  const size_t gemm =
      std::max({gemm_scratch_bytes(kBatch, s.lora, s.nope, 1), gemm_scratch_bytes(kBatch, s.v, s.lora, 1),
                gemm_scratch_bytes(heads, kTile, width, 1), gemm_scratch_bytes(heads, s.lora, kTile, 1)});
  t.gemm = c.take<std::byte>(static_cast<int64_t>(gemm));
  return t;
}

Partial carve_partials(const MlaShape& s, int64_t count, Carver& c) {
  Partial p;
  p.max = c.take<float>(count * s.heads);
  p.sum = c.take<float>(count * s.heads);
  p.out = c.take<float>(count * s.heads * s.lora);
  return p;
}

Shared carve_shared(const MlaShape& s, int threads, Carver& c) {
  Shared g;
  g.query = c.take<float>(kBatch * s.heads * (s.lora + s.rope));
  g.state = carve_partials(s, kBatch, c);
  g.unit_count = kUnitsPerThread * threads;
  g.units = carve_partials(s, g.unit_count, c);
  Carver one(nullptr);
  carve_thread(s, one);
  g.per_thread = one.used();
  g.threads = c.take<std::byte>(static_cast<int64_t>(g.per_thread) * threads);
  return g;
}

template <typename Body>
void for_items(const Job& job, const Shared& g, int64_t items, const Body& body) {
  attention::for_items(job.cx, items, [&](int item, int thread) {
    Carver carver(g.threads + static_cast<size_t>(thread) * g.per_thread);
    body(item, carve_thread(job.shape, carver));
  });
}

/// query[i][head] = (q_nope · w_uk, q_rope) for the tokens of the batch.
void project_queries(const Job& job, const Shared& g, std::span<const Token> tokens, int64_t head,
                     const ThreadScratch& t) {
  const MlaShape& s = job.shape;
  const auto n = static_cast<int64_t>(tokens.size());
  const int64_t stride = s.heads * job.width();
  float* query = g.query + head * job.width();
  for (int64_t i = 0; i < n; ++i) {
    const float* q = job.q.row(tokens[static_cast<size_t>(i)].row) + head * job.q_head();
    std::copy_n(q, s.nope, t.gather + i * s.nope);
    std::copy_n(q + s.nope, s.rope, query + i * stride + s.lora);
  }
  gemm_single(job.cx.level, job.cx.rounding, {t.gather, n, s.nope},
              job.weights.w_uk[static_cast<size_t>(head)].view(), {query, n, s.lora, stride}, Accumulate::kNo,
              t.gemm);
}

/// The latent rows [first, first + keys) as keys [keys, lora + rope] and as values [lora, keys].
/// Keys up to `end` that follow are prefetched.
void pack_latents(const Job& job, const Token& token, int64_t first, int64_t keys, int64_t end,
                  const ThreadScratch& t) {
  const MlaShape& s = job.shape;
  const int64_t width = job.width();
  const DType type = tile_dtype(job.cx.rounding);
  if (job.cache.dtype != type || job.cx.rounding == Rounding::kF16 || (type == DType::kBf16 && width % 2)) {
    attention::load_rows(job.rows, job.cache_rows(), token.table, first, keys, t.latent);
    attention::pack_keys(job.rows, job.cx.rounding, t.latent, width, s.lora, t.latent + s.lora, width, s.rope,
                         keys, t.temp, t.keys);
    attention::pack_values(job.rows, job.cx.rounding, t.latent, width, s.lora, keys, keys, t.temp, t.values);
    return;
  }
  // The usual case: the cache holds just what the product reads.
  const attention::CacheRows cache = job.cache_rows();
  const bool in_place = attention::reads_in_place(cache, job.cx.level);
  if (!in_place) attention::copy_rows(cache, token.table, first, keys, t.latent);
  const int64_t units = cache.row_bytes() / 4;  // of 32 bits, in a row
  const int64_t panel = attention::value_panel(job.cx.rounding, keys);
  for (int64_t key = 0; key < keys; key += kPanelColumns) {
    // The next tile comes to L2 while this one is packed; a whole tile at once would fill the queues of the
    // core and stall it.
    const int64_t next = first + kTile + key, n = std::min(kPanelColumns, keys - key);
    if (next < end) attention::prefetch_rows(cache, token.table, next, std::min(kPanelColumns, end - next));
    const std::byte* rows = in_place ? attention::row_at(cache, token.table, first + key)
                                     : reinterpret_cast<const std::byte*>(t.latent) + key * cache.row_bytes();
    job.rows.pack_columns(reinterpret_cast<const uint32_t*>(rows), units, n, units,
                          reinterpret_cast<uint32_t*>(t.keys) + key * units);
    attention::pack_values_as_they_lie(job.rows, type, rows, width, s.lora, key, n, panel, t.values);
  }
}

/// All heads of one token over the keys [begin, end), into `into` (scores, then values).
void attend_segment(const Job& job, const Token& token, const float* query, int64_t begin, int64_t end,
                    const Partial& into, const ThreadScratch& t) {
  const MlaShape& s = job.shape;
  const int64_t width = job.width(), heads = s.heads;
  const DType dtype = tile_dtype(job.cx.rounding);
  for (int64_t first = begin; first < end; first += kTile) {
    const int64_t keys = std::min(kTile, end - first);
    pack_latents(job, token, first, keys, end, t);
    gemm_single(job.cx.level, job.cx.rounding, {query, heads, width}, {t.keys, dtype, keys, width},
                {t.scores, heads, keys, kTile}, Accumulate::kNo, t.gemm);
    SoftmaxTile tile;
    tile.scores = t.scores;
    tile.stride = kTile;
    tile.rows = heads;
    tile.keys = keys;
    tile.first_valid = keys;
    tile.step = 0;
    tile.scale = s.scale;
    tile.first = first == begin;
    tile.max = into.max;
    tile.sum = into.sum;
    tile.correction = t.correction;
    job.rows.softmax(tile);
    if (first > begin) {
      for (int64_t h = 0; h < heads; ++h) {
        float* out = into.out + h * s.lora;
        if (!(t.correction[h] == 1.0f)) job.rows.scale(out, t.correction[h], s.lora, out);
      }
    }
    gemm_single(job.cx.level, job.cx.rounding, {t.scores, heads, keys, kTile},
                {t.values, dtype, s.lora, keys}, {into.out, heads, s.lora},
                first == begin ? Accumulate::kNo : Accumulate::kYes, t.gemm);
  }
}

Partial at(const MlaShape& s, const Partial& p, int64_t index) {
  return {p.max + index * s.heads, p.sum + index * s.heads, p.out + index * s.heads * s.lora};
}

/// One head: state ← state joined with a later segment.
void merge(const Job& job, const Partial& state, const Partial& later, int64_t h, bool first_segment) {
  const int64_t lora = job.shape.lora;
  float* out = state.out + h * lora;
  const float* from = later.out + h * lora;
  if (first_segment) {
    state.max[h] = later.max[h];
    state.sum[h] = later.sum[h];
    std::copy_n(from, lora, out);
    return;
  }
  attention::join_softmax(job.rows, state.max[h], state.sum[h], out, later.max[h], later.sum[h], from, lora);
}

/// out[token][head] = (state / sum) · w_uv.
void project_outputs(const Job& job, const Shared& g, std::span<const Token> tokens, int64_t head,
                     const ThreadScratch& t) {
  const MlaShape& s = job.shape;
  const auto n = static_cast<int64_t>(tokens.size());
  for (int64_t i = 0; i < n; ++i) {
    const Partial state = at(s, g.state, i);
    float* out = state.out + head * s.lora;
    job.rows.scale(out, 1.0f / state.sum[head], s.lora, out);
  }
  gemm_single(
      job.cx.level, job.cx.rounding, {g.state.out + head * s.lora, n, s.lora, s.heads * int64_t{s.lora}},
      job.weights.w_uv[static_cast<size_t>(head)].view(), {t.gather, n, s.v}, Accumulate::kNo, t.gemm);
  for (int64_t i = 0; i < n; ++i) {
    std::copy_n(t.gather + i * s.v, s.v, job.out.row(tokens[static_cast<size_t>(i)].row) + head * s.v);
  }
}

struct Unit {
  int64_t token, segment;
};

Unit find_unit(std::span<const Token> tokens, int64_t unit) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    const int64_t segments = tokens[i].position / kSegment + 1;
    if (unit < segments) return {static_cast<int64_t>(i), unit};
    unit -= segments;
  }
  DUET_CHECK(false && "unit beyond the last token");
  return {};
}

void run_batch(const Job& job, const Shared& g, std::span<const Token> tokens) {
  const MlaShape& s = job.shape;
  for_items(job, g, s.heads,
            [&](int64_t head, const ThreadScratch& t) { project_queries(job, g, tokens, head, t); });
  int64_t units = 0;
  for (const Token& token : tokens) units += token.position / kSegment + 1;
  for (int64_t wave = 0; wave < units; wave += g.unit_count) {  // bounds the scratch for any context
    const int64_t count = std::min(g.unit_count, units - wave);
    for_items(job, g, count, [&](int64_t i, const ThreadScratch& t) {
      const Unit unit = find_unit(tokens, wave + i);
      const Token& token = tokens[static_cast<size_t>(unit.token)];
      const int64_t begin = unit.segment * kSegment;
      attend_segment(job, token, g.query + unit.token * s.heads * job.width(), begin,
                     std::min(begin + kSegment, token.position + 1), at(s, g.units, i), t);
    });
    for_items(job, g, s.heads, [&](int64_t head, const ThreadScratch&) {
      for (int64_t i = 0; i < count; ++i) {
        const Unit unit = find_unit(tokens, wave + i);
        merge(job, at(s, g.state, unit.token), at(s, g.units, i), head, unit.segment == 0);
      }
    });
  }
  for_items(job, g, s.heads,
            [&](int64_t head, const ThreadScratch& t) { project_outputs(job, g, tokens, head, t); });
}

}  // namespace

size_t absorbed_bytes(const MlaShape& shape, int threads) {
  Carver carver(nullptr);
  carve_shared(shape, threads, carver);
  return carver.used();
}

void run_absorbed(const Job& job, std::byte* scratch) {
  Carver carver(scratch);
  const Shared g = carve_shared(job.shape, job.cx.threads(), carver);
  Token tokens[kBatch];
  size_t count = 0;
  for (const AttentionSpan& span : job.spans) {
    if (span.form != AttentionForm::kAbsorbed) continue;
    for (int64_t i = 0; i < span.rows; ++i) {
      tokens[count++] = {span.first_row + i, span.start_position + i, span.block_table};
      if (count == kBatch) {
        run_batch(job, g, {tokens, count});
        count = 0;
      }
    }
  }
  if (count > 0) run_batch(job, g, {tokens, count});
}

}  // namespace duet::mla
