#include "kernels/cpu/gemm_block.h"

#include <algorithm>
#include <cstring>

namespace duet::gemm_detail {
namespace {

int64_t div_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/// Constants of one multiply_block call.
struct Job {
  const TileSet* tiles;
  const float* block;
  int64_t rows;  // of the block
  const std::byte* w;
  int64_t step_bytes;    // of one panel
  int64_t panel_stride;  // bytes
  int64_t n;
  float* c;  // (0, 0) of the whole product, as if the block's rows and all columns were there
  int64_t ldc;
};

/// One tile: rows [row, row + height), `panels` panels from `panel`, steps [s0, s1).
void run_tile(const Job& job, int64_t row, int height, int64_t panel, int panels, int64_t s0, int64_t s1,
              bool load_c) {
  const TileFn tile = job.tiles->tile[height - 1][panels / 2];
  const float* a = job.block + (s0 / kBlockSteps * job.rows + row) * kRowWords;
  const std::byte* w = job.w + panel * job.panel_stride + s0 * job.step_bytes;
  const int64_t column = panel * kPanelColumns;
  float* c = job.c + row * job.ldc + column;
  const int64_t width = panels * kPanelColumns;
  const int64_t valid = std::min(width, job.n - column);
  if (valid == width) {
    tile(s1 - s0, a, w, job.panel_stride, c, job.ldc, load_c);
    return;
  }
  // The last panel is wider than c: the tile works on a copy.
  float edge[kMaxTileRows * 4 * kPanelColumns] = {};
  const auto bytes = static_cast<size_t>(valid) * sizeof(float);
  if (load_c) {
    for (int r = 0; r < height; ++r) std::memcpy(edge + r * width, c + r * job.ldc, bytes);
  }
  tile(s1 - s0, a, w, job.panel_stride, edge, width, load_c);
  for (int r = 0; r < height; ++r) std::memcpy(c + r * job.ldc, edge + r * width, bytes);
}

/// The widest tile of this height that `left` panels fill.
int widest(const TileSet& tiles, int height, int64_t left) {
  const TileFn* of_height = tiles.tile[height - 1];
  if (of_height[2] && left >= 4) return 4;
  return of_height[1] && left >= 2 ? 2 : 1;
}

}  // namespace

Product choose_product(CpuLevel level, Rounding rounding, DType weights) {
  const GemmKernels* kernels = level == CpuLevel::kPortable ? gemm_kernels_portable()
                               : level == CpuLevel::kAvx2   ? gemm_kernels_avx2()
                                                            : gemm_kernels_avx512();
  Product product{&kernels->f32, kernels->round_row, rounding};
  if (weights == DType::kF16) product.tiles = &kernels->f16;
  if (weights == DType::kBf16) {
    const bool dot = level == CpuLevel::kAvx512Bf16 && rounding == Rounding::kBf16;
    product.tiles = dot ? dot_tiles_avx512bf16() : &kernels->bf16;
  }
  return product;
}

int64_t block_words(int64_t rows, int64_t k) {
  return rows * div_up(k, kBlockSteps) * kRowWords;
}

void pack_row(const Product& product, const float* in, int64_t k0, int64_t count, float* block, int64_t rows,
              int64_t row) {
  const int64_t per_word = product.tiles->pairs ? 2 : 1;
  const int64_t block_k = kBlockSteps * per_word;
  for (int64_t k = k0; k < k0 + count;) {
    const int64_t end = std::min(k0 + count, (k / block_k + 1) * block_k);
    float* to = block + (k / block_k * rows + row) * kRowWords + k % block_k / per_word;
    if (product.tiles->pairs) {
      auto* pairs = reinterpret_cast<bf16_t*>(to);
      f32_to_bf16(in + (k - k0), pairs, static_cast<size_t>(end - k));
      if ((end - k) % 2 != 0) pairs[end - k] = {0};
    } else if (product.rounding == Rounding::kNone) {
      std::memcpy(to, in + (k - k0), static_cast<size_t>(end - k) * sizeof(float));
    } else {
      product.round_row(product.rounding, in + (k - k0), end - k, to);
    }
    k = end;
  }
}

void multiply_block(const Product& product, const float* block, int64_t rows, int64_t row0, int64_t row1,
                    const PackedView& w, int64_t panel0, int64_t panel1, float* c, int64_t ldc,
                    Accumulate accumulate) {
  if (row0 >= row1 || panel0 >= panel1) return;
  const TileSet& tiles = *product.tiles;
  const int64_t steps = tiles.pairs ? (w.k + 1) / 2 : w.k;
  const auto element = static_cast<int64_t>(dtype_bytes(w.dtype));
  const Job job{&tiles,
                block,
                rows,
                static_cast<const std::byte*>(w.data),
                kPanelColumns * element * (tiles.pairs ? 2 : 1),
                static_cast<int64_t>(packed_bytes(kPanelColumns, w.k, w.dtype)),
                w.n,
                c - row0 * ldc - panel0 * kPanelColumns,
                ldc};
  // Strips of nearly one height: 16 rows are 8 + 8, not 12 + 4.
  const int64_t strips = div_up(row1 - row0, tiles.max_rows);
  const int64_t low = (row1 - row0) / strips;
  const int64_t taller = (row1 - row0) % strips;
  const int most = static_cast<int>(low + (taller > 0 ? 1 : 0));
  const bool start = accumulate == Accumulate::kYes;
  if (strips == 1) {
    // Few rows: bound by memory. Each group of panels is one run from its first byte to its last.
    for (int64_t p = panel0; p < panel1;) {
      const int panels = widest(tiles, most, panel1 - p);
      int64_t s = 0;
      do {
        const int64_t end = std::min(steps, s + kBlockSteps);
        run_tile(job, row0, most, p, panels, s, end, start || s > 0);
        s = end;
      } while (s < steps);
      p += panels;
    }
    return;
  }
  int64_t s = 0;
  do {
    const int64_t end = std::min(steps, s + kBlockSteps);
    for (int64_t p = panel0; p < panel1;) {
      const int panels = widest(tiles, most, panel1 - p);
      int64_t row = row0;
      for (int64_t i = 0; i < strips; ++i) {
        const int height = static_cast<int>(low + (i < taller ? 1 : 0));
        run_tile(job, row, height, p, panels, s, end, start || s > 0);
        row += height;
      }
      p += panels;
    }
    s = end;
  } while (s < steps);
}

}  // namespace duet::gemm_detail
