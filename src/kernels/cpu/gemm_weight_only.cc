#include <algorithm>
#include <cstring>

#include "kernels/cpu/gemm_block.h"

// 8-bit weights, float inputs. K is cut into pieces: at the borders of scales, of the block's rows and
// every kPiece steps; the sum of a piece is made by float tiles and meets its scale on the way to c. The
// pieces depend on the weights alone, and both ways below sum a piece in the same chains, so a result does
// not depend on the number of rows.

namespace duet::gemm_detail {
namespace {

// k per piece at most: two panels widened are 32 KiB as float32, 16 KiB as bf16. fp8's blocks of 128 are
// smaller. Long enough that reading and writing c once per piece costs some percent.
constexpr int64_t kPiece = 256;
constexpr int64_t kMaxPanels = 4;

struct Piece {
  int64_t k0, k1;           // multiples of 4
  const std::byte* scales;  // of the first panel; those of others panel_bytes further
  const std::byte* quads;
};

/// Walks the pieces of a panel.
class Pieces {
 public:
  Pieces(const PackedView& w, bool pairs)
      : at_(static_cast<const std::byte*>(w.data)),
        scales_(at_),
        end_((w.k + 3) / 4 * 4),
        block_k_(kBlockSteps * (pairs ? 2 : 1)),
        per_block_(w.dtype == DType::kF8E4M3),
        block_(w.block) {
    if (per_block_) {
      border_ = std::min(end_, block_ - w.offset);
      at_ += 64;
    } else {
      border_ = end_;
      at_ += 128;
    }
  }
  bool next(Piece* piece) {
    if (k_ >= end_) return false;
    if (k_ == border_) {
      scales_ = at_;
      at_ += 64;
      border_ = std::min(end_, border_ + block_);
    }
    const int64_t k1 = std::min({border_, (k_ / block_k_ + 1) * block_k_, k_ + kPiece});
    *piece = {k_, k1, scales_, at_};
    at_ += (k1 - k_) / 4 * 64;
    k_ = k1;
    return true;
  }

 private:
  const std::byte* at_;
  const std::byte* scales_;
  int64_t end_, block_k_;
  bool per_block_;
  int64_t block_, border_ = 0, k_ = 0;
};

struct Job {
  const Product* product;
  const float* block;
  int64_t rows;
  int64_t panel_bytes;
  int64_t n;
  float* c;  // (0, 0) of the whole product
  int64_t ldc;
};

/// Rows of a strip at the begin of a piece.
const float* strip_rows(const Job& job, const Piece& piece, int64_t row) {
  const int64_t per_word = job.product->tiles->pairs ? 2 : 1;
  const int64_t word = piece.k0 / per_word;
  return job.block + (word / kBlockSteps * job.rows + row) * kRowWords + word % kBlockSteps;
}

int64_t steps_of(const Job& job, const Piece& piece) {
  return (piece.k1 - piece.k0) / (job.product->tiles->pairs ? 2 : 1);
}

/// c (+)= sums · scales for the rows of a strip.
void add_strip(const Job& job, const Piece& piece, const float* sums, int64_t row, int height, int64_t panel,
               int panels, bool load_c) {
  const int64_t column = panel * kPanelColumns;
  job.product->weight_only->add_scaled({sums, height, panels,
                                        std::min(panels * kPanelColumns, job.n - column),
                                        piece.scales + panel * job.panel_bytes, job.panel_bytes,
                                        job.c + row * job.ldc + column, job.ldc, load_c});
}

/// Few rows: widened in registers, each group of panels read from its first byte to its last.
void few_rows(const Job& job, const PackedView& w, int64_t row, int height, int64_t panel0, int64_t panel1,
              bool start) {
  const WeightOnlyKernels& kernels = *job.product->weight_only;
  const TileSet& tiles = w.dtype == DType::kI8 ? kernels.i8 : kernels.f8;
  const TileFn* of_height = tiles.tile[height - 1];
  alignas(64) float sums[kMaxTileRows * kMaxPanels * kPanelColumns];
  for (int64_t p = panel0; p < panel1;) {
    const int panels = of_height[2] && panel1 - p >= 4 ? 4 : of_height[1] && panel1 - p >= 2 ? 2 : 1;
    prefetch_panels(static_cast<const std::byte*>(w.data) + (p + panels) * job.panel_bytes, job.panel_bytes,
                    std::min<int64_t>(panels, panel1 - p - panels));
    Pieces pieces(w, job.product->tiles->pairs);
    for (Piece piece; pieces.next(&piece);) {
      of_height[panels / 2](steps_of(job, piece), strip_rows(job, piece, row),
                            piece.quads + p * job.panel_bytes, job.panel_bytes, sums, panels * kPanelColumns,
                            false);
      add_strip(job, piece, sums, row, height, p, panels, start || piece.k0 > 0);
    }
    p += panels;
  }
}

/// Many rows: a piece of one or two panels is widened once and serves them all from the L1 cache.
void many_rows(const Job& job, const PackedView& w, int64_t row0, const Strips& strips, int64_t panel0,
               int64_t panel1, bool start) {
  const WeightOnlyKernels& kernels = *job.product->weight_only;
  const auto widen = w.dtype == DType::kI8 ? kernels.widen_i8 : kernels.widen_f8;
  const TileSet& tiles = *kernels.wide;
  alignas(64) std::byte wide[2 * kPiece * kPanelColumns * sizeof(float)];
  alignas(64) float sums[kMaxTileRows * 2 * kPanelColumns];
  const bool two = tiles.tile[strips.most() - 1][1] && tiles.tile[strips.low - 1][1];
  for (int64_t p = panel0; p < panel1;) {
    const int panels = two && panel1 - p >= 2 ? 2 : 1;
    Pieces pieces(w, tiles.pairs);
    for (Piece piece; pieces.next(&piece);) {
      const int64_t quads = (piece.k1 - piece.k0) / 4;
      const int64_t wide_bytes = steps_of(job, piece) * 64;
      for (int i = 0; i < panels; ++i) {
        widen(quads, piece.quads + (p + i) * job.panel_bytes, wide + i * wide_bytes);
      }
      int64_t row = row0;
      for (int64_t i = 0; i < strips.count; ++i) {
        const int height = strips.height(i);
        tiles.tile[height - 1][panels / 2](steps_of(job, piece), strip_rows(job, piece, row), wide,
                                           wide_bytes, sums, panels * kPanelColumns, false);
        add_strip(job, piece, sums, row, height, p, panels, start || piece.k0 > 0);
        row += height;
      }
    }
    p += panels;
  }
}

}  // namespace

void multiply_weight_only(const Product& product, const float* block, int64_t rows, int64_t row0,
                          int64_t row1, const PackedView& w, int64_t panel0, int64_t panel1, float* c,
                          int64_t ldc, Accumulate accumulate) {
  const bool start = accumulate == Accumulate::kYes;
  if (w.k == 0) {
    const int64_t columns = std::min(panel1 * kPanelColumns, w.n) - panel0 * kPanelColumns;
    for (int64_t r = row0; r < row1 && !start; ++r) std::fill_n(c + (r - row0) * ldc, columns, 0.0f);
    return;
  }
  const Job job{&product, block, rows, w.panel_bytes(), w.n, c - row0 * ldc - panel0 * kPanelColumns, ldc};
  const TileSet& few = w.dtype == DType::kI8 ? product.weight_only->i8 : product.weight_only->f8;
  if (row1 - row0 <= few.max_rows) {
    few_rows(job, w, row0, static_cast<int>(row1 - row0), panel0, panel1, start);
  } else {
    many_rows(job, w, row0, Strips(row1 - row0, product.weight_only->wide->max_rows), panel0, panel1, start);
    if (product.weight_only->wide->done) product.weight_only->wide->done();
  }
}

}  // namespace duet::gemm_detail
