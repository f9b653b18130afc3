#include <algorithm>
#include <cstring>

#include "kernels/cpu/gemm_block.h"

// fp8 weights as floats. K is cut into pieces: at the borders of scales and of the block's rows, and
// after the most that a level takes at once. The sum of a piece is made by float tiles and meets its scale on
// the way to c. The pieces depend on the weights and the level alone, and both ways below sum a piece in the
// same chains, so a result does not depend on the number of rows.

namespace duet::gemm_detail {
namespace {

// Two panels of the longest piece widened are 32 KiB as float32, 16 KiB as bf16.
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
  Pieces(const PackedView& w, const Product& product)
      : most_(std::min(kPiece, product.weight_only->piece)),
        at_(static_cast<const std::byte*>(w.data)),
        scales_(at_),
        end_((w.k + 3) / 4 * 4),
        block_k_(kBlockSteps * (product.tiles->pairs ? 2 : 1)),
        block_(w.block),
        border_(std::min(end_, block_ - w.offset)) {
    at_ += 64;
  }
  bool next(Piece* piece) {
    if (k_ >= end_) return false;
    if (k_ == border_) {
      scales_ = at_;
      at_ += 64;
      border_ = std::min(end_, border_ + block_);
    }
    const int64_t k1 = std::min({border_, (k_ / block_k_ + 1) * block_k_, k_ + most_});
    *piece = {k_, k1, scales_, at_};
    at_ += (k1 - k_) / 4 * 64;
    k_ = k1;
    return true;
  }

 private:
  int64_t most_;
  const std::byte* at_;
  const std::byte* scales_;
  int64_t end_, block_k_;
  int64_t block_, border_, k_ = 0;
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

/// Where the sums of a strip go.
ScaledSums strip_sums(const Job& job, const Piece& piece, const float* sums, int64_t row, int height,
                      int64_t panel, int panels, bool load_c) {
  const int64_t column = panel * kPanelColumns;
  return {sums,
          height,
          panels,
          std::min(panels * kPanelColumns, job.n - column),
          piece.scales + panel * job.panel_bytes,
          job.panel_bytes,
          job.c + row * job.ldc + column,
          job.ldc,
          load_c,
          job.product->weight_only->output_power};
}

/// Few rows: widened in registers, each group of panels read from its first byte to its last.
void few_rows(const Job& job, const PackedView& w, int64_t row, int height, int64_t panel0, int64_t panel1,
              bool start) {
  const WeightOnlyKernels& kernels = *job.product->weight_only;
  const TileSet& tiles = kernels.f8;
  const TileFn* of_height = tiles.tile[height - 1];
  alignas(64) float sums[kMaxTileRows * kMaxPanels * kPanelColumns];
  for (int64_t p = panel0; p < panel1;) {
    const int panels = of_height[2] && panel1 - p >= 4 ? 4 : of_height[1] && panel1 - p >= 2 ? 2 : 1;
    prefetch_panels(static_cast<const std::byte*>(w.data) + (p + panels) * job.panel_bytes, job.panel_bytes,
                    std::min<int64_t>(panels, panel1 - p - panels));
    Pieces pieces(w, *job.product);
    for (Piece piece; pieces.next(&piece);) {
      of_height[panels / 2](steps_of(job, piece), strip_rows(job, piece, row),
                            piece.quads + p * job.panel_bytes, job.panel_bytes, sums, panels * kPanelColumns,
                            false);
      kernels.add_scaled(strip_sums(job, piece, sums, row, height, p, panels, start || piece.k0 > 0));
    }
    p += panels;
  }
}

/// Where the piece after `piece` begins in the first of `panels` panels from p on; null after the last one.
/// The piece after a panel's last one is the first of the next panels.
const std::byte* next_piece(const Job& job, const PackedView& w, const Piece& piece, int64_t p, int panels,
                            int64_t panel1) {
  if (piece.k1 < w.k) return piece.quads + p * job.panel_bytes + (piece.k1 - piece.k0) * kPanelColumns;
  if (p + panels >= panel1) return nullptr;
  return static_cast<const std::byte*>(w.data) + (p + panels) * job.panel_bytes;
}

/// Part `i` of `n` of the `lines` lines from `at` on of each of `panels` panels comes to the L1 cache.
void prefetch_part(const Job& job, const std::byte* at, int64_t lines, int panels, int64_t i, int64_t n) {
  for (int64_t line = i * lines / n; at && line < (i + 1) * lines / n; ++line) {
    for (int p = 0; p < panels; ++p) __builtin_prefetch(at + p * job.panel_bytes + line * 64);
  }
}

/// Many rows: a piece of one or two panels is widened once and serves them all from the L1 cache.
void many_rows(const Job& job, const PackedView& w, int64_t row0, const Strips& strips, int64_t panel0,
               int64_t panel1, bool start) {
  const WeightOnlyKernels& kernels = *job.product->weight_only;
  const TileSet& tiles = *kernels.wide;
  alignas(64) std::byte wide[2 * kPiece * kPanelColumns * sizeof(float)];
  alignas(64) float sums[kMaxTileRows * 2 * kPanelColumns];
  const bool two = tiles.tile[strips.most() - 1][1] && tiles.tile[strips.low - 1][1];
  for (int64_t p = panel0; p < panel1;) {
    const int panels = two && panel1 - p >= 2 ? 2 : 1;
    Pieces pieces(w, *job.product);
    for (Piece piece; pieces.next(&piece);) {
      const int64_t quads = (piece.k1 - piece.k0) / 4;
      const int64_t wide_bytes = steps_of(job, piece) * 64;
      for (int i = 0; i < panels; ++i) {
        kernels.widen_f8(quads, piece.quads + (p + i) * job.panel_bytes, wide + i * wide_bytes);
      }
      // The next piece is brought from memory while this one multiplies, a part by each strip.
      const std::byte* next = next_piece(job, w, piece, p, panels, panel1);
      int64_t row = row0;
      for (int64_t i = 0; i < strips.count; ++i) {
        const int height = strips.height(i);
        prefetch_part(job, next, quads + 2, panels, i, strips.count);
        const ScaledSums to = strip_sums(job, piece, sums, row, height, p, panels, start || piece.k0 > 0);
        const float* rows = strip_rows(job, piece, row);
        if (kernels.wide_scaled && to.columns == panels * kPanelColumns) {
          kernels.wide_scaled[height - 1][panels / 2](steps_of(job, piece), rows, wide, wide_bytes, to);
        } else {
          tiles.tile[height - 1][panels / 2](steps_of(job, piece), rows, wide, wide_bytes, sums,
                                             panels * kPanelColumns, false);
          kernels.add_scaled(to);
        }
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
  const Job job{&product, block, rows, w.panel_bytes(), w.n, c - row0 * ldc - panel0 * kPanelColumns, ldc};
  if (row1 - row0 <= product.weight_only->f8.max_rows) {
    few_rows(job, w, row0, static_cast<int>(row1 - row0), panel0, panel1, start);
  } else {
    many_rows(job, w, row0, Strips(row1 - row0, product.weight_only->wide->max_rows), panel0, panel1, start);
    if (product.weight_only->wide->done) product.weight_only->wide->done();
  }
}

}  // namespace duet::gemm_detail
