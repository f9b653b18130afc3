// MLA for prompt tokens: keys and values of a head are expanded from the latent, a tile at a time.
// One item of work is (a block of rows of one span, a few heads). The tile is the outer loop, so
// one expansion (2 · lora · (nope + v) operations a key, worth about 400 rows of scores and
// values) serves every row of the block. The output accumulates in `out` itself, so a block may
// be long while the scratch only holds a maximum and a sum per row. Blocks of one sequence, in this call or
// in those of other micro-batches, share expansions through ExpandedTiles, where there is room.
#include "kernels/cpu/mla_tile.h"

namespace duet {

namespace {

constexpr int64_t kTile = 128;        // keys: a query row is rounded and an output row rescaled once per tile
constexpr int64_t kRowBlock = 1024;   // rows that share an expansion
constexpr int64_t kMinRowBlock = 64;  // below, expansion is nearly all of the work
constexpr int64_t kSubRows = 64;      // rows per product: scores stay in the first-level caches
constexpr int64_t kHeadGroup = 4;     // heads that share the reading of a tile

int64_t key_bytes(const MlaShape& s, DType dtype) {
  return attention::round_up(static_cast<int64_t>(packed_bytes(kTile, s.nope + s.rope, dtype)), 64);
}
int64_t value_bytes(const MlaShape& s, DType dtype) {
  return attention::round_up(static_cast<int64_t>(packed_bytes(s.v, kTile, dtype)), 64);
}

/// A head's packed keys [kTile, nope + rope] and values [v, kTile].
struct PackedTile {
  std::byte* keys = nullptr;
  std::byte* values = nullptr;
};

}  // namespace

/// What this file does with ExpandedTiles.
class TileRoom {
 public:
  static int64_t head_bytes(const MlaShape& s, Rounding rounding) {
    const DType dtype = attention::tile_dtype(rounding);
    return key_bytes(s, dtype) + value_bytes(s, dtype);
  }
  /// The tiles of a sequence in a layer; those of another layer are dropped.
  static std::vector<int32_t>& slots_of(ExpandedTiles& tiles, const void* layer, const int32_t* block_table) {
    if (tiles.layer_ != layer) {
      tiles.clear();
      tiles.layer_ = layer;
    }
    for (ExpandedTiles::Sequence& s : tiles.sequences_)
      if (s.block_table == block_table) return s.slots;
    return tiles.sequences_.emplace_back(ExpandedTiles::Sequence{block_table, {}}).slots;
  }
  static bool full(const ExpandedTiles& tiles) { return tiles.used_ == tiles.slots_; }
  static int32_t take_slot(ExpandedTiles& tiles) { return static_cast<int32_t>(tiles.used_++); }
  static PackedTile tile(ExpandedTiles& tiles, const MlaShape& s, Rounding rounding, int32_t slot,
                         int64_t head) {
    const DType dtype = attention::tile_dtype(rounding);
    std::byte* at = tiles.data_.data() + slot * tiles.slot_bytes_ + head * head_bytes(s, rounding);
    return {at, at + key_bytes(s, dtype)};
  }
  static uint8_t& spoilt(ExpandedTiles& tiles, const MlaShape& s, int32_t slot, int64_t head) {
    return tiles.spoilt_[static_cast<size_t>(slot * s.heads + head)];
  }
};

ExpandedTiles::ExpandedTiles(const MlaShape& shape, Rounding rounding, int64_t positions)
    : slot_bytes_(shape.heads * TileRoom::head_bytes(shape, rounding)),
      slots_(positions / kTile),
      data_(static_cast<size_t>(slots_ * slot_bytes_)),
      spoilt_(static_cast<size_t>(slots_ * shape.heads)) {}

int64_t ExpandedTiles::bytes(const MlaShape& shape, Rounding rounding, int64_t positions) {
  return positions / kTile * shape.heads * (TileRoom::head_bytes(shape, rounding) + 1);
}

void ExpandedTiles::clear() {
  layer_ = nullptr;
  used_ = 0;
  sequences_.clear();
}

namespace mla {

namespace {

struct Scratch {
  float* latent;    // [kTile, lora + rope]
  float* expanded;  // [kTile, expanded_columns]
  std::byte* temp;  // of the packers
  PackedTile tile;
  float* scores;      // [kSubRows, kTile]
  float* correction;  // [kSubRows]
  float* max;         // [kHeadGroup, kRowBlock]
  float* sum;
  std::byte* gemm;
};

Scratch carve(const MlaShape& s, Carver& c) {
  const int64_t q_head = s.nope + s.rope;
  Scratch t;
  t.latent = c.take<float>(kTile * (s.lora + s.rope));
  t.expanded = c.take<float>(kTile * expanded_columns(s));
  t.temp = c.take<std::byte>(
      std::max<int64_t>(static_cast<int64_t>(key_temp_bytes(q_head)), kTile * s.v * int64_t{sizeof(float)}));
  t.tile.keys = c.take<std::byte>(key_bytes(s, DType::kF32));
  t.tile.values = c.take<std::byte>(value_bytes(s, DType::kF32));
  t.scores = c.take<float>(kSubRows * kTile);
  t.correction = c.take<float>(kSubRows);
  t.max = c.take<float>(kHeadGroup * kRowBlock);
  t.sum = c.take<float>(kHeadGroup * kRowBlock);
  const size_t gemm =
      std::max({gemm_scratch_bytes(kTile, expanded_columns(s), s.lora, 1),
                gemm_scratch_bytes(kSubRows, kTile, q_head, 1), gemm_scratch_bytes(kSubRows, s.v, kTile, 1)});
  t.gemm = c.take<std::byte>(static_cast<int64_t>(gemm));
  return t;
}

/// How spans are cut into items. The cut moves work between threads and never changes a result.
struct Cut {
  int64_t row_block;
  int64_t head_group;
  int64_t groups;
};

Cut choose_cut(const Job& job, int64_t total_rows) {
  const int64_t wanted = job.cx.threads() == 1 ? 1 : 3 * job.cx.threads();  // some slack to balance
  Cut cut{kRowBlock, kHeadGroup, 0};
  const int64_t blocks = (total_rows + kRowBlock - 1) / kRowBlock;
  while (cut.head_group > 1 && blocks * ((job.shape.heads + cut.head_group - 1) / cut.head_group) < wanted) {
    cut.head_group /= 2;
  }
  cut.groups = (job.shape.heads + cut.head_group - 1) / cut.head_group;
  const int64_t pieces = (wanted + cut.groups - 1) / cut.groups;  // row blocks wanted
  if (blocks < pieces) {
    cut.row_block =
        std::clamp(round_up((total_rows + pieces - 1) / pieces, kSubRows), kMinRowBlock, kRowBlock);
  }
  return cut;
}

struct Block {  // rows [row, row + rows) of q and out, the first at `position`
  int64_t row, rows, position;
  const int32_t* table;
  int64_t head, heads;
  std::span<const int32_t> slots;  // of the leading tiles that are packed for all
};

/// `slots`: by span.
Block find_block(const Job& job, const Cut& cut, std::span<const std::span<const int32_t>> slots,
                 int64_t item) {
  for (size_t i = 0; i < job.spans.size(); ++i) {
    const AttentionSpan& span = job.spans[i];
    if (span.form != AttentionForm::kExpanded) continue;
    const int64_t blocks = (span.rows + cut.row_block - 1) / cut.row_block;
    if (item < blocks * cut.groups) {
      // Late blocks see most keys and cost most: they go first.
      const int64_t first = (blocks - 1 - item / cut.groups) * cut.row_block;
      const int64_t head = item % cut.groups * cut.head_group;
      return {span.first_row + first,
              std::min(cut.row_block, span.rows - first),
              span.start_position + first,
              span.block_table,
              head,
              std::min<int64_t>(cut.head_group, job.shape.heads - head),
              slots[i]};
    }
    item -= blocks * cut.groups;
  }
  DUET_CHECK(false && "item beyond the last span");
  return {};
}

/// The first `keys` of the expanded values.
void pack_values(const Job& job, int64_t keys, const Scratch& t, const PackedTile& tile) {
  attention::pack_values(job.rows, job.cx.rounding, t.expanded + job.shape.nope, expanded_columns(job.shape),
                         job.shape.v, keys, kTile, t.temp, tile.values);
}

/// Packs keys and values of one head for the tile whose latent rows are in t.latent.
void expand_head(const Job& job, int64_t head, int64_t keys, const Scratch& t, const PackedTile& tile) {
  const MlaShape& s = job.shape;
  const int64_t columns = expanded_columns(s);
  const PackedView w = job.weights.kv_b.view().from_panel(head * columns / kPanelColumns, columns);
  gemm_single(job.cx.level, job.cx.rounding, {t.latent, keys, s.lora, job.width()}, w,
              {t.expanded, keys, columns}, Accumulate::kNo, t.gemm);
  attention::pack_keys(job.rows, job.cx.rounding, t.expanded, columns, s.nope, t.latent + s.lora, job.width(),
                       s.rope, keys, t.temp, tile.keys);
  pack_values(job, keys, t, tile);
}

/// See attention::any_spoilt.
bool has_spoilt_values(const Job& job, int64_t keys, const Scratch& t) {
  const int64_t columns = expanded_columns(job.shape);
  return attention::any_spoilt(job.cx.rounding, t.expanded + job.shape.nope, columns, job.shape.v, keys);
}

/// One tile for rows [r, r + rows) of the block: scores, softmax, values; `keys` are multiplied,
/// of which row r sees the first `first_valid`.
void attend_rows(const Job& job, const Block& block, int64_t local_head, int64_t r, int64_t rows,
                 int64_t first, int64_t keys, const Scratch& t, const PackedTile& packed) {
  const MlaShape& s = job.shape;
  const int64_t head = block.head + local_head;
  const int64_t first_valid = block.position + r - first + 1;
  const int64_t seen = std::min(keys, first_valid + rows - 1);  // by the last of these rows
  const ConstRows q{job.q.row(block.row + r) + head * job.q_head(), rows, job.q_head(), job.q.stride};
  SoftmaxTile tile;
  tile.scores = t.scores;
  tile.stride = kTile;
  tile.rows = rows;
  tile.keys = seen;
  tile.first_valid = first_valid;
  tile.step = 1;
  tile.scale = s.scale;
  tile.first = first == 0;
  tile.max = t.max + local_head * kRowBlock + r;
  tile.sum = t.sum + local_head * kRowBlock + r;
  tile.correction = t.correction;
  const Rows out{job.out.row(block.row + r) + head * s.v, rows, s.v, job.out.stride};
  attention::attend(job.cx, job.rows, {q, packed.keys, packed.values, tile, out}, t.gemm);
}

/// One head, one tile, for the rows of the block that see the tile. `shared`: packed for all, every value
/// finite.
void attend_tile(const Job& job, const Block& block, int64_t local_head, int64_t first, int64_t keys,
                 const Scratch& t, const PackedTile& tile, bool shared) {
  const int64_t begin = std::max<int64_t>(0, first - block.position);
  // Rows before this one see only a part of the tile.
  const int64_t all_seen = std::clamp(first + keys - 1 - block.position, begin, block.rows);
  int64_t r = begin;
  if (!shared && all_seen > begin && has_spoilt_values(job, keys, t)) {
    for (; r < all_seen; ++r) {
      const int64_t seen = block.position + r - first + 1;
      pack_values(job, seen, t, tile);
      attend_rows(job, block, local_head, r, 1, first, seen, t, tile);
    }
    pack_values(job, keys, t, tile);
  }
  for (; r < block.rows; r += kSubRows) {
    attend_rows(job, block, local_head, r, std::min(kSubRows, block.rows - r), first, keys, t, tile);
  }
}

void run_block(const Job& job, const Block& block, ExpandedTiles* tiles, const Scratch& t) {
  const int64_t end = block.position + block.rows;  // keys beyond are nobody's business here
  for (int64_t first = 0; first < end; first += kTile) {
    const int64_t keys = std::min(kTile, end - first), index = first / kTile;
    const bool packed = index < std::ssize(block.slots);
    const int32_t slot = packed ? block.slots[static_cast<size_t>(index)] : 0;
    bool loaded = false;
    for (int64_t h = 0; h < block.heads; ++h) {
      const int64_t head = block.head + h;
      if (packed && !TileRoom::spoilt(*tiles, job.shape, slot, head)) {
        attend_tile(job, block, h, first, kTile, t,
                    TileRoom::tile(*tiles, job.shape, job.cx.rounding, slot, head), true);
        continue;
      }
      if (!loaded) load_latent(job, block.table, first, keys, t.latent);
      loaded = true;
      expand_head(job, head, keys, t, t.tile);
      attend_tile(job, block, h, first, keys, t, t.tile, false);
    }
  }
  for (int64_t h = 0; h < block.heads; ++h) {
    for (int64_t r = 0; r < block.rows; ++r) {
      float* out = job.out.row(block.row + r) + (block.head + h) * job.shape.v;
      job.rows.scale(out, 1.0f / t.sum[h * kRowBlock + r], job.shape.v, out);
    }
  }
}

// A tile that is to be packed for all.
struct NewTile {
  const int32_t* table;
  int64_t first;
  int32_t slot;
};

/// Packs the whole tiles that spans with several blocks see and nobody has packed, as far as there is room.
/// Returns the slots of every span's tiles.
std::vector<std::span<const int32_t>> share_tiles(const Job& job, const Cut& cut, ExpandedTiles* tiles,
                                                  std::byte* scratch, size_t per_thread) {
  std::vector<std::span<const int32_t>> slots(job.spans.size());
  if (!tiles) return slots;
  const auto shares = [&](const AttentionSpan& s) {
    return s.form == AttentionForm::kExpanded && s.rows > 0 && (s.cut || s.rows > cut.row_block);
  };
  std::vector<NewTile> pending;
  for (const AttentionSpan& span : job.spans) {
    if (!shares(span)) continue;
    std::vector<int32_t>& known = TileRoom::slots_of(*tiles, job.cache.data, span.block_table);
    const int64_t wanted = (span.start_position + span.rows) / kTile;
    while (std::ssize(known) < wanted && !TileRoom::full(*tiles)) {
      const int32_t slot = TileRoom::take_slot(*tiles);
      pending.push_back({span.block_table, std::ssize(known) * kTile, slot});
      known.push_back(slot);
    }
  }
  // Vectors no longer move.
  for (size_t i = 0; i < slots.size(); ++i)
    if (shares(job.spans[i])) slots[i] = TileRoom::slots_of(*tiles, job.cache.data, job.spans[i].block_table);
  attention::for_items(job.cx, std::ssize(pending) * cut.groups, [&](int item, int thread) {
    Carver carver(scratch + static_cast<size_t>(thread) * per_thread);
    const Scratch t = carve(job.shape, carver);
    const NewTile& tile = pending[static_cast<size_t>(item / cut.groups)];
    const int64_t begin = item % cut.groups * cut.head_group;
    load_latent(job, tile.table, tile.first, kTile, t.latent);
    for (int64_t head = begin; head < std::min<int64_t>(begin + cut.head_group, job.shape.heads); ++head) {
      expand_head(job, head, kTile, t, TileRoom::tile(*tiles, job.shape, job.cx.rounding, tile.slot, head));
      TileRoom::spoilt(*tiles, job.shape, tile.slot, head) = has_spoilt_values(job, kTile, t);
    }
  });
  return slots;
}

}  // namespace

size_t expanded_bytes(const MlaShape& shape, int threads) {
  Carver one(nullptr);
  carve(shape, one);
  return one.used() * static_cast<size_t>(threads);
}

void run_expanded(const Job& job, ExpandedTiles* tiles, std::byte* scratch) {
  int64_t total = 0;
  for (const AttentionSpan& span : job.spans) {
    if (span.form == AttentionForm::kExpanded) total += span.rows;
  }
  if (total == 0) return;
  const Cut cut = choose_cut(job, total);
  int64_t items = 0;
  for (const AttentionSpan& span : job.spans) {
    if (span.form == AttentionForm::kExpanded)
      items += (span.rows + cut.row_block - 1) / cut.row_block * cut.groups;
  }
  const size_t per_thread = expanded_bytes(job.shape, 1);
  const std::vector<std::span<const int32_t>> slots = share_tiles(job, cut, tiles, scratch, per_thread);
  attention::for_items(job.cx, items, [&](int item, int thread) {
    Carver carver(scratch + static_cast<size_t>(thread) * per_thread);
    run_block(job, find_block(job, cut, slots, item), tiles, carve(job.shape, carver));
  });
}

}  // namespace mla
}  // namespace duet
