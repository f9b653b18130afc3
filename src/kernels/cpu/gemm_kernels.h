// What one CPU level contributes to a matrix product: register tiles and the conversion of a row of
// activations. Filled by gemm_<level>.cc, used by gemm.cc; nobody else includes it.
// Always: a tile sums, for each of its outputs, a[k]·w[k] with k ascending in short chains, each from zero,
// and adds the chains in order, so a result is the same whichever tile computed it. No inline functions
// here: a header that is compiled with several instruction sets must not leave its copies to the linker's
// choice.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

/// After it the compiler takes memory as changed: sums that a loop keeps in memory stay there, instead of
/// being promoted to registers that the accumulators need.
#define DUET_KEEP_IN_MEMORY(array) asm volatile("" : : "r"(array) : "memory")

#if defined(__clang__)
#define DUET_UNROLL _Pragma("unroll")
#else
#define DUET_UNROLL _Pragma("GCC unroll 16")
#endif

namespace duet::gemm_detail {

/// Activations are copied (and rounded) row by row into blocks of this many 32-bit words: one f32, or
/// a pair of bf16 for the dot product. 12 rows are 24 KiB: they stay in a 32 KiB L1 while the
/// weights stream by.
constexpr int64_t kBlockSteps = 512;
/// Words from one row of a block to the next: a constant, so that tiles address rows by displacement;
/// 33 cache lines, so that rows do not meet in the same L1 set.
constexpr int64_t kRowWords = kBlockSteps + 16;
constexpr int kMaxTileRows = 12;
/// Steps of one chain, by the weights' type. A rounding error is as large as the partial sum that a chain
/// carries along, so short chains lose a fraction of what one long chain loses. 16 cost about 5 % of the
/// speed; rounded weights and activations hide the difference, and their chains are longer.
/// Even, because bf16 weights lie in pairs; divisors of kBlockSteps, the range of one call.
constexpr int64_t kSumSteps = 16;        // float32
constexpr int64_t kSumStepsNarrow = 64;  // bf16, f16
static_assert(kBlockSteps % kSumSteps == 0 && kBlockSteps % kSumStepsNarrow == 0);

/// c [rows, 16 · panels] (+)= a · w over `steps` words of each row: a has stride kRowWords, panel p
/// starts at w + p · panel_stride (bytes). load_c: the sum is added to c.
using TileFn = void (*)(int64_t steps, const float* a, const std::byte* w, int64_t panel_stride, float* c,
                        int64_t ldc, bool load_c);

/// The tiles for one weight type. A null entry would not fit the registers.
struct TileSet {
  int max_rows;
  bool pairs;                    // a word of a is two bf16
  TileFn tile[kMaxTileRows][3];  // [rows - 1][0: one panel, 1: two panels, 2: four panels]
};

struct GemmKernels {
  TileSet f32, bf16, f16;  // by the weights' type; all multiply float32
  /// out[i] = round(in[i]) as float32, i < count.
  void (*round_row)(Rounding rounding, const float* in, int64_t count, float* out);
};

const GemmKernels* gemm_kernels_portable();
const GemmKernels* gemm_kernels_avx2();
const GemmKernels* gemm_kernels_avx512();
/// bf16 · bf16 by vdpbf16ps. Its rounding (to nearest, subnormals flushed) is the instruction's own.
const TileSet* dot_tiles_avx512bf16();

}  // namespace duet::gemm_detail
