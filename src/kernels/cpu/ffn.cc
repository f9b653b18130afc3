#include "kernels/cpu/ffn.h"

#include <algorithm>

#include "kernels/cpu/gemm_block.h"

namespace duet::ffn_detail {
namespace {

using namespace gemm_detail;

// A thread's tile of gate and up, or of y: 192 rows × 128 columns, 96 KiB of the L2. Fewer rows get
// more columns, so that an item stays long enough to be worth handing out.
constexpr int64_t kColumns = 128;
constexpr int64_t kThreadFloats = kBlockRows * kColumns;
constexpr int64_t kFewRows = 12;
constexpr int64_t kWidePanels = 32;
constexpr int64_t kPanels = kColumns / kPanelColumns;
static_assert(kFewRows * kWidePanels * kPanelColumns <= kThreadFloats);
constexpr int64_t kPackAlone = 32 * 1024;
constexpr int64_t kQuantiseRows = 16;  // per item

int64_t div_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

const FfnKernels* kernels_for(CpuLevel level) {
  switch (level) {
    case CpuLevel::kPortable: return ffn_kernels_portable();
    case CpuLevel::kAvx2: return ffn_kernels_avx2();
    case CpuLevel::kAvx512:
    case CpuLevel::kAvx512Bf16:
    case CpuLevel::kAmx: return ffn_kernels_avx512();
  }
  return ffn_kernels_portable();
}

/// Panels per item, of a matrix of `panels`: few when the threads would otherwise go hungry, more where there
/// are `all` of them in matrices like it.
int64_t chunk_panels(int64_t rows, int64_t panels, int64_t all, int threads) {
  const int64_t most = rows <= kFewRows ? kWidePanels : kPanels;
  if (threads == 1) return most;
  const int64_t share = std::max(panels / (4 * threads), all / (16 * threads));
  return std::clamp<int64_t>(share / 4 * 4, 4, most);
}

struct Group {
  const FfnKernels* kernels;
  const KernelContext* cx;
  ConstRows x;
  Rows out;
  GroupScratch scratch;
  int64_t count;
  Accumulate accumulate;
  int64_t gate_up_panels;  // of all segments
  int64_t down_chunk;

  int64_t gate_up_chunk(const Segment& s) const {
    return chunk_panels(s.rows, s.weights->gate_up.n() / kPanelColumns, gate_up_panels, cx->threads());
  }

  Product gate_up(const Segment& s) const { return product(s.weights->gate_up); }
  Product down(const Segment& s) const { return product(s.weights->down); }
  Product product(const PackedMatrix& w) const {
    // Hidden rows are quantised where they lie, which two rows for one, or longer values, could not be.
    DUET_CHECK(w.view().inputs != Inputs::kInt16);
    return choose_product(cx->level, cx->rounding, w.view());
  }
  float* x_block(const Segment& s) const { return scratch.x + s.first_row * scratch.x_words; }
  float* hidden_block(const Segment& s) const { return scratch.hidden + s.first_row * scratch.hidden_words; }
  const float* x_row(const Segment& s, int64_t i) const {
    return x.row(s.index ? s.index[i] : s.first_row + i);
  }
};

void pack_segment(const Group& g, const Segment& s) {
  const Product product = g.gate_up(s);
  for (int64_t i = 0; i < s.rows; ++i) {
    pack_whole_row(product, g.x_row(s, i), g.x_block(s), s.rows, i);
  }
}

/// Columns of gate and up, then silu(gate) · up, straight into the block that `down` reads; for int8 inputs
/// as floats, hidden_words apart, which quantise_hidden turns into that block.
void gate_up_item(const Group& g, int64_t item, int thread) {
  const Segment* first = g.scratch.segments;
  const Segment& s = *(std::upper_bound(first, first + g.count, item,
                                        [](int64_t i, const Segment& seg) { return i < seg.first_item; }) -
                       1);
  const PackedView w = s.weights->gate_up.view();
  const int64_t panels = w.n / kPanelColumns;
  const int64_t chunk = g.gate_up_chunk(s);
  const int64_t panel0 = (item - s.first_item) * chunk;
  const int64_t panel1 = std::min(panels, panel0 + chunk);
  const int64_t width = (panel1 - panel0) * kPanelColumns;
  float* both = g.scratch.threads + thread * kThreadFloats;
  multiply_block(g.gate_up(s), g.x_block(s), s.rows, 0, s.rows, w, panel0, panel1, both, width,
                 Accumulate::kNo);
  const Product product = g.down(s);
  const int64_t k0 = panel0 / 2 * kPanelColumns;
  const int64_t k1 = std::min(s.weights->intermediate, panel1 / 2 * kPanelColumns);
  alignas(64) float activated[kWidePanels / 2 * kPanelColumns];
  if (product.int8) {
    for (int64_t r = 0; r < s.rows; ++r) {
      g.kernels->silu_mul(both + r * width, (panel1 - panel0) / 2,
                          g.hidden_block(s) + r * g.scratch.hidden_words + k0);
    }
    return;
  }
  for (int64_t r = 0; r < s.rows; ++r) {
    g.kernels->silu_mul(both + r * width, (panel1 - panel0) / 2, activated);
    pack_row(product, activated, k0, k1 - k0, g.hidden_block(s), s.rows, r);
  }
}

/// Rows [first, end) of the group: their whole hidden state is there, so its scale is known.
void quantise_hidden(const Group& g, int64_t first, int64_t end) {
  for (int64_t i = 0; i < g.count; ++i) {
    const Segment& s = g.scratch.segments[i];
    const Product product = g.down(s);
    if (!product.int8) continue;
    for (int64_t r = std::max(first, s.first_row); r < std::min(end, s.first_row + s.rows); ++r) {
      float* row = g.scratch.hidden + r * g.scratch.hidden_words;
      product.int8->quantise_row(row, s.weights->intermediate, reinterpret_cast<std::byte*>(row));
    }
  }
}

/// All rows of `s` times panels [panel0, panel1) of down.
void multiply_down(const Group& g, const Segment& s, int64_t panel0, int64_t panel1, float* c, int64_t ldc,
                   Accumulate accumulate) {
  const Product product = g.down(s);
  const PackedView w = s.weights->down.view();
  if (product.int8) {
    multiply_int8(product, reinterpret_cast<const std::byte*>(g.hidden_block(s)),
                  g.scratch.hidden_words * int64_t{sizeof(float)}, 0, s.rows, w, panel0, panel1, c, ldc,
                  accumulate);
  } else {
    multiply_block(product, g.hidden_block(s), s.rows, 0, s.rows, w, panel0, panel1, c, ldc, accumulate);
  }
}

/// The first panels of a segment that comes next: a tile's own prefetch would find their beginning in memory.
void prefetch_down(const Segment& s, int64_t panel0, int64_t panel1) {
  const PackedView w = s.weights->down.view();
  const auto* first = static_cast<const std::byte*>(w.data) + panel0 * w.panel_bytes();
  if (s.rows <= kFewRows) prefetch_panels(first, w.panel_bytes(), std::min<int64_t>(4, panel1 - panel0));
}

/// Columns of the output, segments in order: the sums of one row keep the order of the experts.
void down_item(const Group& g, int64_t item, int thread) {
  const int64_t panel0 = item * g.down_chunk;
  const int64_t panel1 = std::min(div_up(g.out.cols, kPanelColumns), panel0 + g.down_chunk);
  const int64_t column = panel0 * kPanelColumns;
  const int64_t width = (panel1 - panel0) * kPanelColumns;
  const int64_t valid = std::min(width, g.out.cols - column);
  float* y = g.scratch.threads + thread * kThreadFloats;
  for (int64_t i = 0; i < g.count; ++i) {
    const Segment& s = g.scratch.segments[i];
    if (i + 1 < g.count) prefetch_down(g.scratch.segments[i + 1], panel0, panel1);
    if (!s.index) {
      multiply_down(g, s, panel0, panel1, g.out.row(s.first_row) + column, g.out.stride, g.accumulate);
      continue;
    }
    multiply_down(g, s, panel0, panel1, y, width, Accumulate::kNo);
    for (int64_t r = 0; r < s.rows; ++r) {
      g.kernels->scaled_add(y + r * width, s.row_weights[r], valid, g.out.row(s.index[r]) + column);
    }
  }
}

}  // namespace

GroupScratch take_scratch(Arena& arena, int64_t rows, int64_t hidden, int64_t intermediate, int threads) {
  GroupScratch s;
  s.x_words = block_words(1, hidden);
  s.hidden_words = block_words(1, intermediate);
  s.segments = arena.take<Segment>(static_cast<size_t>(rows));
  s.x = arena.take<float>(static_cast<size_t>(block_words(rows, hidden)));
  s.hidden = arena.take<float>(static_cast<size_t>(block_words(rows, intermediate)));
  s.threads = arena.take<float>(static_cast<size_t>(threads * kThreadFloats));
  return s;
}

size_t scratch_bytes(int64_t rows, int64_t hidden, int64_t intermediate, int threads) {
  const int64_t floats =
      block_words(rows, hidden) + block_words(rows, intermediate) + threads * kThreadFloats;
  return static_cast<size_t>(floats) * sizeof(float) + static_cast<size_t>(rows) * sizeof(Segment) + 4 * 64;
}

void run_group(const KernelContext& cx, ConstRows x, const GroupScratch& scratch, int64_t count, Rows out,
               Accumulate accumulate) {
  const int threads = cx.threads();
  Group g{kernels_for(cx.level), &cx, x, out, scratch, count, accumulate, 0, 0};
  int64_t items = 0;
  int64_t rows = 0;
  for (int64_t i = 0; i < count; ++i)
    g.gate_up_panels += scratch.segments[i].weights->gate_up.n() / kPanelColumns;
  for (int64_t i = 0; i < count; ++i) {
    Segment& s = scratch.segments[i];
    s.first_item = items;
    items += div_up(s.weights->gate_up.n() / kPanelColumns, g.gate_up_chunk(s));
    rows += s.rows;
  }
  const int64_t down_panels = div_up(out.cols, kPanelColumns);
  int64_t most_rows = 0;
  for (int64_t i = 0; i < count; ++i) most_rows = std::max(most_rows, scratch.segments[i].rows);
  g.down_chunk = chunk_panels(most_rows, down_panels, down_panels, threads);
  const auto down_items = static_cast<int>(div_up(down_panels, g.down_chunk));
  if (threads == 1) {
    for (int64_t i = 0; i < count; ++i) pack_segment(g, scratch.segments[i]);
    for (int64_t i = 0; i < items; ++i) gate_up_item(g, i, 0);
    quantise_hidden(g, 0, rows);
    for (int i = 0; i < down_items; ++i) down_item(g, i, 0);
    return;
  }
  // The bodies capture one pointer, which std::function holds without allocating.
  const Group* group = &g;
  if (rows * x.cols < kPackAlone || count == 1) {
    for (int64_t i = 0; i < count; ++i) pack_segment(g, scratch.segments[i]);
  } else {
    cx.pool->parallel_for(static_cast<int>(count),
                          [group](int i, int) { pack_segment(*group, group->scratch.segments[i]); });
  }
  cx.pool->parallel_for(static_cast<int>(items), [group](int i, int t) { gate_up_item(*group, i, t); });
  bool quantise = false;  // experts may be stored differently
  for (int64_t i = 0; i < count; ++i) quantise |= g.down(scratch.segments[i]).int8 != nullptr;
  if (quantise && rows * scratch.segments[0].weights->intermediate < kPackAlone) {
    quantise_hidden(g, 0, rows);
  } else if (quantise) {
    cx.pool->parallel_for(static_cast<int>(div_up(rows, kQuantiseRows)), [group](int i, int) {
      quantise_hidden(*group, i * kQuantiseRows, (i + 1) * kQuantiseRows);
    });
  }
  cx.pool->parallel_for(down_items, [group](int i, int t) { down_item(*group, i, t); });
}

}  // namespace duet::ffn_detail
