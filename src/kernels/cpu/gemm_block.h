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
  const TileSet* tiles = nullptr;
  void (*round_row)(Rounding, const float*, int64_t, float*) = nullptr;
  Rounding rounding = Rounding::kNone;
};
Product choose_product(CpuLevel level, Rounding rounding, DType weights);

/// Words a block of `rows` rows of length k needs; linear in rows, an upper bound for every Product.
int64_t block_words(int64_t rows, int64_t k);

/// Writes in[0, count) as elements [k0, k0 + count) of row `row` of a block that holds `rows` rows.
/// k0 is even; an odd end is padded with a zero.
void pack_row(const Product& product, const float* in, int64_t k0, int64_t count, float* block, int64_t rows,
              int64_t row);

/// Rows [row0, row1) of a block of `rows` rows times panels [panel0, panel1) of w. c points at
/// (row0, first column of panel0); columns at and beyond w.n are not touched.
void multiply_block(const Product& product, const float* block, int64_t rows, int64_t row0, int64_t row1,
                    const PackedView& w, int64_t panel0, int64_t panel1, float* c, int64_t ldc,
                    Accumulate accumulate);

}  // namespace duet::gemm_detail
