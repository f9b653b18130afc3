// The two halves of a matrix product, for gemm(), mlp() and experts(): a block of activation rows in
// the form the tiles read, and the product of such a block with a range of weight panels.
// Always: which rows share a block or a call, and which panels, never changes a result.
#pragma once

#include "kernels/cpu/gemm_kernels.h"
#include "kernels/ops.h"

namespace duet::gemm_detail {

/// Rows that are packed at once: 192 rows × 512 steps are 384 KiB, which stay in L2 while panels pass,
/// and a weight read from memory once is used 192 times.
constexpr int64_t kBlockRows = 192;

/// What multiplies weights of one type at one level and rounding.
struct Product {
  const TileSet* tiles = nullptr;  // floats; of 8-bit weights the ones for many rows
  void (*round_row)(Rounding, const float*, int64_t, float*) = nullptr;
  Rounding rounding = Rounding::kNone;
  const WeightOnlyKernels* weight_only = nullptr;  // fp8 weights
  const Int8Kernels* int8 = nullptr;               // i8 weights
  bool int16 = false;                              // Inputs::kInt16 in two rows of int8 each, high, then low
  int64_t k = 0;                                   // of the weights
};
Product choose_product(CpuLevel level, Rounding rounding, const PackedView& w);
/// Null where the level has no dot product of bf16, or inputs keep more bits.
PairRowsFn choose_pair_rows(CpuLevel level, Rounding rounding);
/// Rows of its tallest tile: rows are best cut at multiples of it.
int64_t tallest_tile(const Product& product);

/// Words a block of `rows` rows of length k needs; linear in rows, an upper bound for every Product.
int64_t block_words(int64_t rows, int64_t k);

/// Writes in[0, count) as elements [k0, k0 + count) of row `row` of a block that holds `rows` rows.
/// k0 is even; the end of a row is padded with zeros to what the tiles take at a time. Not for int8 inputs,
/// whose scale needs the whole row.
void pack_row(const Product& product, const float* in, int64_t k0, int64_t count, float* block, int64_t rows,
              int64_t row);
/// A whole row, of any product.
void pack_whole_row(const Product& product, const float* in, float* block, int64_t rows, int64_t row);

/// Integer inputs: bytes from one row of int8 of a block to the next, and where in a row its scale lies.
int64_t int8_row_bytes(const Product& product);
int64_t int8_scale_at(const Product& product);

/// Rows [row0, row1) of a block of `rows` rows times panels [panel0, panel1) of w. c points at
/// (row0, first column of panel0); columns at and beyond w.n are not touched.
void multiply_block(const Product& product, const float* block, int64_t rows, int64_t row0, int64_t row1,
                    const PackedView& w, int64_t panel0, int64_t panel1, float* c, int64_t ldc,
                    Accumulate accumulate);

/// multiply_block's ways with 8-bit weights (gemm_weight_only.cc, gemm_int8.cc). The block of integer
/// inputs has rows of int8 `a_stride` bytes apart.
void multiply_weight_only(const Product& product, const float* block, int64_t rows, int64_t row0,
                          int64_t row1, const PackedView& w, int64_t panel0, int64_t panel1, float* c,
                          int64_t ldc, Accumulate accumulate);
void multiply_int8(const Product& product, const std::byte* block, int64_t a_stride, int64_t row0,
                   int64_t row1, const PackedView& w, int64_t panel0, int64_t panel1, float* c, int64_t ldc,
                   Accumulate accumulate);

/// Asks for the first KiB of `count` panels: a tile's own prefetch runs ahead inside a panel, and would find
/// the beginning of the next group of panels still in memory.
void prefetch_panels(const std::byte* first, int64_t panel_bytes, int64_t count);

/// Rows in strips of nearly one height: 16 rows are 8 + 8, not 12 + 4.
struct Strips {
  Strips(int64_t rows, int64_t max_rows);
  int64_t count, low, taller;
  int64_t rows() const { return count * low + taller; }
  int most() const { return static_cast<int>(low + (taller > 0 ? 1 : 0)); }
  int height(int64_t strip) const { return static_cast<int>(low + (strip < taller ? 1 : 0)); }
};

}  // namespace duet::gemm_detail
