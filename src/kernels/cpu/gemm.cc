#include <algorithm>

#include "kernels/cpu/gemm_block.h"
#include "kernels/ops.h"

namespace duet {
namespace {

using namespace gemm_detail;

constexpr int64_t kPackRows = 16;          // rows per item when threads share the packing
constexpr int64_t kPackAlone = 32 * 1024;  // elements below which waking threads costs more than it saves
constexpr int64_t kChunkPanels = 16;       // per item: 256 columns, enough to read the block's rows once for
constexpr int64_t kSplitRows = 24;

int64_t div_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/// How one block's product is cut into items: panel chunks × row chunks.
struct Grid {
  int64_t panels, chunk_panels, panel_chunks;
  int64_t chunk_rows, row_chunks;
};

Grid make_grid(int64_t rows, int64_t n, int64_t tallest, int threads) {
  Grid g{};
  g.panels = div_up(n, kPanelColumns);
  g.chunk_panels = kChunkPanels;
  if (threads > 1) {
    // About four items per thread even out their speeds; fours of panels keep the wide tiles busy.
    const int64_t share = g.panels / (4 * threads) / 4 * 4;
    g.chunk_panels = std::clamp<int64_t>(share, 4, kChunkPanels);
  }
  g.panel_chunks = div_up(g.panels, g.chunk_panels);
  g.chunk_rows = rows;
  if (threads > 1 && g.panel_chunks < 2 * threads && rows > kSplitRows) {
    const int64_t want = div_up(2 * threads, g.panel_chunks);
    g.chunk_rows = div_up(std::max(div_up(rows, want), kSplitRows), tallest) * tallest;
  }
  g.row_chunks = div_up(rows, g.chunk_rows);
  return g;
}

struct BlockJob {
  Product product;
  ConstRows a;  // this block's rows
  PackedView w;
  Rows c;  // this block's rows
  Accumulate accumulate;
  float* block;
  Grid grid;
};

void pack_rows(const BlockJob& job, int64_t row0, int64_t row1) {
  for (int64_t r = row0; r < row1; ++r) {
    pack_whole_row(job.product, job.a.row(r), job.block, job.a.rows, r);
  }
}

void run_item(const BlockJob& job, int64_t item) {
  const Grid& g = job.grid;
  const int64_t panel0 = item / g.row_chunks * g.chunk_panels;
  const int64_t panel1 = std::min(g.panels, panel0 + g.chunk_panels);
  const int64_t row0 = item % g.row_chunks * g.chunk_rows;
  const int64_t row1 = std::min(job.a.rows, row0 + g.chunk_rows);
  multiply_block(job.product, job.block, job.a.rows, row0, row1, job.w, panel0, panel1,
                 job.c.row(row0) + panel0 * kPanelColumns, job.c.stride, job.accumulate);
}

void run_block(const BlockJob& job, ThreadPool* pool) {
  const int64_t items = job.grid.panel_chunks * job.grid.row_chunks;
  const int64_t rows = job.a.rows;
  if (!pool || pool->threads() == 1) {
    pack_rows(job, 0, rows);
    for (int64_t i = 0; i < items; ++i) run_item(job, i);
    return;
  }
  // The bodies capture one pointer, which std::function holds without allocating.
  if (rows * job.a.cols < kPackAlone) {
    pack_rows(job, 0, rows);
  } else {
    pool->parallel_for(static_cast<int>(div_up(rows, kPackRows)), [&job](int item, int) {
      pack_rows(job, item * kPackRows, std::min(job.a.rows, (item + 1) * kPackRows));
    });
  }
  pool->parallel_for(static_cast<int>(items), [&job](int item, int) { run_item(job, item); });
}

/// Rows per block: M in equal parts of at most kBlockRows, so that the last one is not a remnant.
int64_t rows_per_block(int64_t m, int64_t tallest) {
  const int64_t blocks = div_up(m, kBlockRows);
  return std::min(kBlockRows, div_up(div_up(m, blocks), tallest) * tallest);
}

void gemm_blocks(CpuLevel level, Rounding rounding, ThreadPool* pool, ConstRows a, const PackedView& w,
                 Rows c, Accumulate accumulate, float* block) {
  const Product product = choose_product(level, rounding, w);
  const int64_t tallest = tallest_tile(product);
  const int64_t step = rows_per_block(a.rows, tallest);
  for (int64_t m = 0; m < a.rows; m += step) {
    const int64_t rows = std::min(step, a.rows - m);
    const Grid grid = make_grid(rows, w.n, tallest, pool ? pool->threads() : 1);
    const BlockJob job{product, a.row_slice(m, rows), w, c.row_slice(m, rows), accumulate, block, grid};
    run_block(job, pool);
  }
}

void check_shapes(const ConstRows& a, const PackedView& w, const Rows& c) {
  DUET_CHECK(a.rows == c.rows && a.cols == w.k && c.cols == w.n);
}

}  // namespace

size_t gemm_scratch_bytes(int64_t max_m, int64_t max_n, int64_t max_k, int threads) {
  (void)max_n;
  (void)threads;  // threads share one packed block
  return static_cast<size_t>(block_words(std::min(max_m, kBlockRows), max_k)) * sizeof(float);
}

void gemm(const KernelContext& cx, ConstRows a, const PackedView& w, Rows c, Accumulate accumulate) {
  check_shapes(a, w, c);
  if (a.rows == 0 || w.n == 0) return;
  ArenaScope scope(*cx.scratch);
  auto* block = cx.scratch->take<float>(gemm_scratch_bytes(a.rows, w.n, w.k, cx.threads()) / sizeof(float));
  gemm_blocks(cx.level, cx.rounding, cx.pool, a, w, c, accumulate, block);
}

void gemm_single(CpuLevel level, Rounding rounding, ConstRows a, const PackedView& w, Rows c,
                 Accumulate accumulate, std::byte* scratch) {
  check_shapes(a, w, c);
  if (a.rows == 0 || w.n == 0) return;
  gemm_blocks(level, rounding, nullptr, a, w, c, accumulate, reinterpret_cast<float*>(scratch));
}

}  // namespace duet
