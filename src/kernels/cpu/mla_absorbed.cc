// MLA for generated tokens: the up-projections are absorbed into query and output, so the heads of
// a token attend to the latent rows themselves, [heads, lora + rope] against [keys, lora + rope].
// A batch of tokens goes through three phases: project queries (split by head), attend (split by
// token and segment of the context), project outputs (split by head). A segment is a fixed run of
// positions and segments are merged in ascending order, so the split that keeps several threads
// busy on one long context depends on the token's position alone.
#include "kernels/cpu/gemm_block.h"
#include "kernels/cpu/mla_latent8.h"

namespace duet::mla {

namespace {

constexpr int64_t kSegment = 1024;  // keys, whole tiles; merging costs a thousandth of computing one
constexpr int64_t kValueColumns = 64;
constexpr int64_t kBatch = 32;  // tokens that share one reading of the up-projections
constexpr int64_t kUnitsPerThread = 4;

struct Token {
  int64_t row, position;
  const int32_t* table;
};

struct ThreadScratch {
  float* gather;  // [kBatch, max(nope, v)]
  std::byte* temp;
  std::byte* query;   // packed [heads in sixteens, lora + rope]
  float* latent;      // [kTile, lora + rope], where the cache's own rows can't be multiplied
  uint32_t* pairs;    // the same as pairs of bf16
  std::byte* values;  // packed [kValueColumns, kTile] of bf16
  float* turned;      // [16 keys, 16 heads], and turned back
  float* scores;      // [heads, kTile]
  float* correction;  // [heads]
  std::byte* gemm;
  std::byte* segment8;
};

struct Shared {
  float* query;   // [kBatch, heads, lora + rope]
  Partial state;  // [kBatch] of each
  Partial units;  // [units] of each: one segment of one token
  int64_t unit_count;
  std::byte* threads;
  size_t per_thread;
};

int64_t words_of(int64_t width) {
  return (width + 1) / 2;
}

ThreadScratch carve_thread(const MlaShape& s, Carver& c) {
  const int64_t width = s.lora + s.rope, heads = s.heads;
  ThreadScratch t;
  t.gather = c.take<float>(kBatch * std::max(s.nope, s.v));
  t.temp = c.take<std::byte>(static_cast<int64_t>(key_temp_bytes(width)));
  t.query = c.take<std::byte>(static_cast<int64_t>(packed_bytes(heads, width, DType::kF32)));
  t.latent = c.take<float>(kTile * width);
  t.pairs = c.take<uint32_t>(kTile * words_of(width));
  t.values = c.take<std::byte>(static_cast<int64_t>(packed_bytes(kValueColumns, kTile, DType::kBf16)));
  t.turned = c.take<float>(2 * kPanelColumns * kPanelColumns);
  t.scores = c.take<float>(heads * kTile);
  t.correction = c.take<float>(heads);
  const size_t gemm =
      std::max({gemm_scratch_bytes(kBatch, s.lora, s.nope, 1), gemm_scratch_bytes(kBatch, s.v, s.lora, 1),
                gemm_scratch_bytes(heads, kValueColumns, kTile, 1)});
  t.gemm = c.take<std::byte>(static_cast<int64_t>(gemm));
  t.segment8 = c.take<std::byte>(static_cast<int64_t>(segment8_bytes(s)));
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

/// The beginning of the matrix that this thread most likely multiplies next, heads being handed out in turn.
void prefetch_next(const Job& job, const std::vector<PackedMatrix>& of_heads, int64_t head) {
  const auto next = static_cast<size_t>(head + job.cx.threads());
  if (next >= of_heads.size()) return;
  const PackedView w = of_heads[next].view();
  gemm_detail::prefetch_panels(static_cast<const std::byte*>(w.data), w.panel_bytes(),
                               std::min<int64_t>(4, (w.n + kPanelColumns - 1) / kPanelColumns));
}

/// query[i][head] = (q_nope · w_uk, q_rope) for the tokens of the batch, rounded as the products with keys
/// round their inputs (the dot product of bf16 does so itself, and integers come from what is not rounded).
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
  prefetch_next(job, job.weights.w_uk, head);
  gemm_single(job.cx.level, job.cx.rounding, {t.gather, n, s.nope},
              job.weights.w_uk[static_cast<size_t>(head)].view(), {query, n, s.lora, stride}, Accumulate::kNo,
              t.gemm);
  if (job.cache.dtype == DType::kI8 || gemm_detail::choose_pair_rows(job.cx.level, job.cx.rounding)) return;
  for (int64_t i = 0; i < n; ++i) {
    attention::round_in_place(job.rows, job.cx.rounding, query + i * stride, job.width());
  }
}

/// In the form that products read: float32, or pairs of bf16 for the dot product.
LatentTile load_tile(const Job& job, const Token& token, int64_t first, int64_t keys, int64_t end, bool dot,
                     const ThreadScratch& t) {
  const attention::CacheRows cache = job.cache_rows();
  const int64_t width = job.width(), words = words_of(width), row_bytes = 4 * (dot ? words : width);
  const bool in_place = cache.dtype == (dot ? DType::kBf16 : DType::kF32) && cache.row_bytes == row_bytes &&
                        attention::can_read_in_place(cache);
  if (!in_place) {
    attention::load_rows(job.rows, cache, token.table, first, keys, t.latent);
    for (int64_t key = 0; dot && key < keys; ++key) {
      auto* row = reinterpret_cast<bf16_t*>(t.pairs + key * words);
      f32_to_bf16(t.latent + key * width, row, static_cast<size_t>(width));
      if (width % 2) row[width] = bf16_t{0};
    }
  }
  const auto* copy =
      dot ? reinterpret_cast<const std::byte*>(t.pairs) : reinterpret_cast<const std::byte*>(t.latent);
  return find_tile(cache, token.table, first, keys, end, in_place ? nullptr : copy, row_bytes);
}

/// scores [heads, kTile] = query · keys. The query's heads are the columns and the keys the rows of the
/// product: keys are read where they lie and nothing but the small result is turned.
void score(const Job& job, const LatentTile& tile, int64_t keys, gemm_detail::PairRowsFn dot,
           const ThreadScratch& t) {
  const int64_t width = job.width(), heads = job.shape.heads;
  const int64_t words = tile.row_bytes / 4;
  float* back = t.turned + kPanelColumns * kPanelColumns;
  for (int64_t key = 0; key < keys; key += kPanelColumns) {
    const int64_t g = key / kPanelColumns, rows = std::min(kPanelColumns, keys - key);
    // float32 computes for as long as memory takes, so the products with values bring the other half.
    Streams ahead = tile.part_of_next(g, dot ? Streams::kPlaces : 2 * Streams::kPlaces);
    for (int64_t head = 0; head < heads; head += kPanelColumns, ahead.lines = 0) {
      const std::byte* query = t.query + head * tile.row_bytes;
      if (dot) {
        dot(static_cast<int>(rows), words, tile.groups[g], tile.row_bytes, query, t.turned, ahead);
      } else {
        RowsProduct p;
        p.a = reinterpret_cast<const float*>(tile.groups[g]);
        p.a_stride = p.steps = width;
        p.rows = rows;
        p.w = reinterpret_cast<const float*>(query);
        p.w_stride = p.ldc = kPanelColumns;
        p.c = t.turned;
        p.ahead = ahead;
        job.rows.multiply_rows(p);
      }
      const int64_t count = std::min(kPanelColumns, heads - head);
      job.rows.pack_columns(reinterpret_cast<const uint32_t*>(t.turned), kPanelColumns, rows, count,
                            reinterpret_cast<uint32_t*>(back));
      for (int64_t h = 0; h < count; ++h) {
        std::copy_n(back + h * kPanelColumns, kPanelColumns, t.scores + (head + h) * kTile + key);
      }
    }
  }
}

/// out [heads, lora] (+)= probabilities [heads, kTile] · the tile's first `lora` columns, by the dot product
/// of bf16: values are packed in pieces that stay in the first-level cache.
void add_values_bf16(const Job& job, const LatentTile& tile, int64_t keys, bool load, float* out,
                     const ThreadScratch& t) {
  const int64_t lora = job.shape.lora, heads = job.shape.heads;
  const int64_t panel = attention::value_panel(Rounding::kBf16, keys);
  PackedView view{t.values, DType::kBf16, 0, keys};
  const gemm_detail::Product product = gemm_detail::choose_product(job.cx.level, job.cx.rounding, view);
  auto* block = reinterpret_cast<float*>(t.gemm);
  for (int64_t h = 0; h < heads; ++h) {
    gemm_detail::pack_whole_row(product, t.scores + h * kTile, block, heads, h);
  }
  for (int64_t column = 0; column < lora; column += kValueColumns) {
    const int64_t columns = std::min(kValueColumns, lora - column);
    view.n = columns;
    for (int64_t key = 0; key < keys; key += kPanelColumns) {
      attention::pack_values_as_they_lie(job.rows, DType::kBf16,
                                         tile.groups[key / kPanelColumns] + column * 2, tile.row_bytes / 2,
                                         columns, key, std::min(kPanelColumns, keys - key), panel, t.values);
    }
    gemm_detail::multiply_block(product, block, heads, 0, heads, view, 0,
                                (columns + kPanelColumns - 1) / kPanelColumns, out + column, lora,
                                load ? Accumulate::kYes : Accumulate::kNo);
  }
}

/// The same in float32, of rows as they lie.
void add_values(const Job& job, const LatentTile& tile, int64_t keys, bool load, float* out,
                const ThreadScratch& t) {
  const int64_t lora = job.shape.lora, heads = job.shape.heads;
  for (int64_t h = 0; h < heads; ++h) {
    attention::round_in_place(job.rows, job.cx.rounding, t.scores + h * kTile, keys);
  }
  const float* groups[kTile / kPanelColumns];
  for (int64_t g = 0; g * kPanelColumns < keys; ++g)
    groups[g] = reinterpret_cast<const float*>(tile.groups[g]);
  RowsProduct p;
  p.a = t.scores;
  p.a_stride = kTile;
  p.rows = heads;
  p.steps = keys;
  p.groups = groups;
  p.w_stride = job.width();
  p.ldc = lora;
  p.load_c = load;
  const int64_t panels = lora / kPanelColumns;
  for (int64_t i = 0; i < panels; ++i, p.column += kPanelColumns) {
    p.c = out + p.column;
    p.ahead = tile.part_of_next(panels + i, 2 * panels);
    job.rows.multiply_rows(p);
  }
  if (p.column == lora) return;
  // The last columns are fewer than a product takes: beyond them lies something else.
  const int64_t first = p.column, rest = lora - first;
  float w[kTile * kPanelColumns] = {}, c[kPanelColumns] = {};
  for (int64_t key = 0; key < keys; ++key) {
    const float* row = groups[key / kPanelColumns] + key % kPanelColumns * job.width();
    std::copy_n(row + first, rest, w + key * kPanelColumns);
  }
  p.ahead = {};
  p.groups = nullptr;
  p.w = w;
  p.w_stride = kPanelColumns;
  p.rows = 1;
  p.c = c;
  for (int64_t h = 0; h < heads; ++h) {
    p.a = t.scores + h * kTile;
    if (load) std::copy_n(out + h * lora + first, rest, c);
    job.rows.multiply_rows(p);
    std::copy_n(c, rest, out + h * lora + first);
  }
}

/// All heads of one token over the keys [begin, end), into `into` (scores, then values).
void attend_segment(const Job& job, const Token& token, const float* query, int64_t begin, int64_t end,
                    const Partial& into, const ThreadScratch& t) {
  const MlaShape& s = job.shape;
  const int64_t width = job.width(), heads = s.heads;
  const auto dot = gemm_detail::choose_pair_rows(job.cx.level, job.cx.rounding);
  attention::pack_keys(job.rows, dot ? Rounding::kBf16 : Rounding::kNone, query, width, s.lora,
                       query + s.lora, width, s.rope, heads, t.temp, t.query);
  for (int64_t first = begin; first < end; first += kTile) {
    const int64_t keys = std::min(kTile, end - first);
    const LatentTile latent = load_tile(job, token, first, keys, end, dot != nullptr, t);
    score(job, latent, keys, dot, t);
    const SoftmaxTile tile = softmax_of_heads(s, t.scores, kTile, keys, first == begin, into, t.correction);
    job.rows.softmax(tile);
    if (first > begin) attention::correct(job.rows, tile, {into.out, heads, s.lora});
    (dot ? add_values_bf16 : add_values)(job, latent, keys, first > begin, into.out, t);
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
  prefetch_next(job, job.weights.w_uv, head);
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
      const int64_t end = std::min(begin + kSegment, token.position + 1);
      const float* query = g.query + unit.token * s.heads * job.width();
      if (job.cache.dtype == DType::kI8) {
        attend_segment8(job, token.table, query, begin, end, at(s, g.units, i), t.segment8);
      } else {
        attend_segment(job, token, query, begin, end, at(s, g.units, i), t);
      }
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
