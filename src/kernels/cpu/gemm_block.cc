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

int64_t padded_k(int64_t k) {
  return div_up(k, 64) * 64;
}

bool has_dot(CpuLevel level, Rounding rounding) {
  return level >= CpuLevel::kAvx512Bf16 && rounding == Rounding::kBf16;
}

/// The widest tile of this height that `left` panels fill.
int widest(const TileSet& tiles, int height, int64_t left) {
  const TileFn* of_height = tiles.tile[height - 1];
  if (of_height[2] && left >= 4) return 4;
  return of_height[1] && left >= 2 ? 2 : 1;
}

}  // namespace

Product choose_product(CpuLevel level, Rounding rounding, const PackedView& w) {
  const bool portable = level == CpuLevel::kPortable;
  const bool avx2 = level == CpuLevel::kAvx2;
  const GemmKernels* kernels = portable ? gemm_kernels_portable()
                               : avx2   ? gemm_kernels_avx2()
                                        : gemm_kernels_avx512();
  const bool amx = level == CpuLevel::kAmx;
  const bool dot = has_dot(level, rounding);
  Product product{&kernels->f32, kernels->round_row,         rounding, nullptr,
                  nullptr,       w.inputs == Inputs::kInt16, w.k};
  if (w.dtype == DType::kI8) {
    product.int8 = portable ? int8_kernels_portable()
                   : avx2   ? int8_kernels_avx2()
                   : amx    ? int8_kernels_amx()
                            : int8_kernels_avx512();
    if (product.int16 && avx2) {
      product.int8 = int16_kernels_avx2();
      product.int16 = false;
    }
  } else if (w.dtype == DType::kF8E4M3) {
    product.weight_only = portable ? weight_only_portable()
                          : avx2   ? weight_only_avx2()
                          : !dot   ? weight_only_avx512()
                          : amx    ? weight_only_amx()
                                   : weight_only_avx512bf16();
  } else if (w.dtype == DType::kF16) {
    product.tiles = &kernels->f16;
  } else if (w.dtype == DType::kBf16) {
    product.tiles = !dot ? &kernels->bf16 : amx ? dot_tiles_amx() : dot_tiles_avx512bf16();
  }
  if (product.weight_only) product.tiles = product.weight_only->wide;
  return product;
}

PairRowsFn choose_pair_rows(CpuLevel level, Rounding rounding) {
  if (!has_dot(level, rounding)) return nullptr;
  return level == CpuLevel::kAmx ? pair_rows_amx() : pair_rows_avx512bf16();
}

int64_t tallest_tile(const Product& product) {
  return product.int8 ? product.int8->max_rows / (product.int16 ? 2 : 1) : product.tiles->max_rows;
}

int64_t block_words(int64_t rows, int64_t k) {
  return rows * div_up(k, kBlockSteps) * kRowWords;
}

int64_t int8_scale_at(const Product& product) {
  return padded_k(product.k) * product.int8->value_bytes;
}
int64_t int8_row_bytes(const Product& product) {
  const int64_t padded = padded_k(product.k);
  return padded * (product.int8->value_bytes + product.int8->value_bytes_behind) + 64;
}

void pack_row(const Product& product, const float* in, int64_t k0, int64_t count, float* block, int64_t rows,
              int64_t row) {
  const int64_t per_word = product.tiles->pairs ? 2 : 1;
  const int64_t block_k = kBlockSteps * per_word;
  for (int64_t k = k0; k < k0 + count;) {
    const int64_t end = std::min(k0 + count, (k / block_k + 1) * block_k);
    float* to = block + (k / block_k * rows + row) * kRowWords + k % block_k / per_word;
    // Quads of 8-bit weights end in zeros, which must not meet whatever lies behind the row.
    const int64_t padding =
        product.weight_only && end == product.k ? (4 - end % 4) % 4 : (end - k) % per_word;
    if (product.tiles->pairs) {
      auto* pairs = reinterpret_cast<bf16_t*>(to);
      f32_to_bf16(in + (k - k0), pairs, static_cast<size_t>(end - k));
      std::fill_n(pairs + (end - k), padding, bf16_t{0});
    } else {
      if (product.rounding == Rounding::kNone) {
        std::memcpy(to, in + (k - k0), static_cast<size_t>(end - k) * sizeof(float));
      } else {
        product.round_row(product.rounding, in + (k - k0), end - k, to);
      }
      if (product.weight_only && product.weight_only->input_power != 1) {
        for (int64_t i = 0; i < end - k; ++i) to[i] *= product.weight_only->input_power;
      }
      std::fill_n(to + (end - k), padding, 0.0f);
    }
    k = end;
  }
}

float largest_magnitude(const float* in, int64_t count) {
  int32_t top = 0;  // as integers, magnitudes keep their order, and NaN is the largest
  for (int64_t i = 0; i < count; ++i) {
    int32_t bits = 0;
    std::memcpy(&bits, in + i, sizeof bits);
    top = std::max(top, bits & 0x7fffffff);
  }
  float largest = 0;
  std::memcpy(&largest, &top, sizeof largest);
  return largest;
}

void pack_whole_row(const Product& product, const float* in, float* block, int64_t rows, int64_t row) {
  if (!product.int8) {
    pack_row(product, in, 0, product.k, block, rows, row);
    return;
  }
  const int64_t bytes = int8_row_bytes(product);
  auto* out = reinterpret_cast<std::byte*>(block) + row * (product.int16 ? 2 : 1) * bytes;
  if (product.int16) {
    product.int8->split_row(in, product.k, out, out + bytes);
  } else {
    product.int8->quantise_row(in, product.k, out);
  }
}

void prefetch_panels(const std::byte* first, int64_t panel_bytes, int64_t count) {
  for (int64_t p = 0; p < count; ++p) {
    for (int64_t i = 0; i < std::min<int64_t>(1024, panel_bytes); i += 64) {
      __builtin_prefetch(first + p * panel_bytes + i, 0, 2);
    }
  }
}

Strips::Strips(int64_t rows, int64_t max_rows)
    : count(div_up(rows, max_rows)), low(rows / count), taller(rows % count) {}

void multiply_block(const Product& product, const float* block, int64_t rows, int64_t row0, int64_t row1,
                    const PackedView& w, int64_t panel0, int64_t panel1, float* c, int64_t ldc,
                    Accumulate accumulate) {
  if (row0 >= row1 || panel0 >= panel1) return;
  if (w.k == 0) {
    const int64_t columns = std::min(panel1 * kPanelColumns, w.n) - panel0 * kPanelColumns;
    for (int64_t r = row0; r < row1 && accumulate == Accumulate::kNo; ++r)
      std::fill_n(c + (r - row0) * ldc, columns, 0.0f);
    return;
  }
  if (product.int8) {
    multiply_int8(product, reinterpret_cast<const std::byte*>(block), int8_row_bytes(product), row0, row1, w,
                  panel0, panel1, c, ldc, accumulate);
    return;
  }
  if (product.weight_only) {
    multiply_weight_only(product, block, rows, row0, row1, w, panel0, panel1, c, ldc, accumulate);
    return;
  }
  const TileSet& tiles = *product.tiles;
  const int64_t steps = tiles.pairs ? (w.k + 1) / 2 : w.k;
  const auto element = static_cast<int64_t>(dtype_bytes(w.dtype));
  const Job job{&tiles,
                block,
                rows,
                static_cast<const std::byte*>(w.data),
                kPanelColumns * element * (tiles.pairs ? 2 : 1),
                w.panel_bytes(),
                w.n,
                c - row0 * ldc - panel0 * kPanelColumns,
                ldc};
  const Strips strips(row1 - row0, tiles.max_rows);
  const int most = strips.most();
  const bool start = accumulate == Accumulate::kYes;
  if (strips.count == 1) {
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
    if (tiles.done) tiles.done();
    return;
  }
  int64_t s = 0;
  do {
    const int64_t end = std::min(steps, s + kBlockSteps);
    for (int64_t p = panel0; p < panel1;) {
      const int panels = widest(tiles, most, panel1 - p);
      if (tiles.tall && panels == tiles.tall_panels && row1 - row0 >= tiles.tall_rows &&
          (p + panels) * kPanelColumns <= w.n) {
        const std::byte* at = job.w + p * job.panel_stride + s * job.step_bytes;
        tiles.tall(row1 - row0, end - s, block + (s / kBlockSteps * rows + row0) * kRowWords, at,
                   job.panel_stride, job.c + row0 * ldc + p * kPanelColumns, ldc, start || s > 0,
                   p + 2 * panels <= panel1 ? at + panels * job.panel_stride : nullptr);
        p += panels;
        continue;
      }
      int64_t row = row0;
      for (int64_t i = 0; i < strips.count; ++i) {
        const int height = strips.height(i);
        run_tile(job, row, height, p, panels, s, end, start || s > 0);
        row += height;
      }
      p += panels;
    }
    s = end;
  } while (s < steps);
  if (tiles.done) tiles.done();
}

}  // namespace duet::gemm_detail
