// What one CPU level contributes to a matrix product: register tiles and the conversion of a row of
// activations. Filled by gemm_<level>.cc, used by gemm.cc; nobody else includes it.
// Always: a tile sums, for each of its outputs, a[k]·w[k] with k ascending in short chains, each from zero,
// and adds the chains in order, so a result is the same whichever tile computed it. No inline functions
// here: a header that is compiled with several instruction sets must not leave its copies to the linker's
// choice.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/row_kernels.h"
#include "kernels/inputs.h"
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
/// a pair of bf16 for the dot product. 12 rows, as many as the tallest tile of vector registers has, are 24
/// KiB: they stay in a 32 KiB L1 while the weights stream by.
constexpr int64_t kBlockSteps = 512;
/// Words from one row of a block to the next: a constant, so that tiles address rows by displacement;
/// 33 cache lines, so that rows do not meet in the same L1 set.
constexpr int64_t kRowWords = kBlockSteps + 16;
constexpr int kMaxTileRows = 32;
/// Steps of one chain, by the weights' type. A rounding error is as large as the partial sum that a chain
/// carries along, so short chains lose a fraction of what one long chain loses. 16 cost about 5 % of the
/// speed; rounded weights and activations hide the difference, and their chains are longer.
/// Even, because bf16 weights lie in pairs; divisors of kBlockSteps, the range of one call.
constexpr int64_t kSumSteps = 16;        // float32
constexpr int64_t kSumStepsNarrow = 64;  // bf16, f16; AMX: kBlockSteps
static_assert(kBlockSteps % kSumSteps == 0 && kBlockSteps % kSumStepsNarrow == 0);

/// c [rows, 16 · panels] (+)= a · w over `steps` > 0 words of each row: a has stride kRowWords, panel p
/// starts at w + p · panel_stride (bytes). load_c: the sum is added to c.
using TileFn = void (*)(int64_t steps, const float* a, const std::byte* w, int64_t panel_stride, float* c,
                        int64_t ldc, bool load_c);

/// The tiles for one weight type. A null entry would not fit the registers.
struct TileSet {
  int max_rows;
  bool pairs;                    // a word of a is two bf16
  TileFn tile[kMaxTileRows][3];  // [rows - 1][0: one panel, 1: two panels, 2: four panels]
  void (*done)() = nullptr;      // where not null: to be called by a thread after its last tile
  /// Where not null: tall_panels panels and at least tall_rows rows, more than a tile has. `next`, if any, is
  /// what will be multiplied next, as w is.
  void (*tall)(int64_t rows, int64_t steps, const float* a, const std::byte* w, int64_t panel_stride,
               float* c, int64_t ldc, bool load_c, const std::byte* next) = nullptr;
  int tall_panels = 2, tall_rows = 0;
};

struct GemmKernels {
  TileSet f32, bf16, f16;  // by the weights' type; all multiply float32
  /// out[i] = round(in[i]) as float32, i < count.
  void (*round_row)(Rounding rounding, const float* in, int64_t count, float* out);
};

/// c [rows, columns] (+)= sums [rows, 16 · panels] · scale of the column; panel p's 16 scales lie at
/// scales + p · panel_stride (bytes).
struct ScaledSums {
  const float* sums;
  int rows, panels;
  int64_t columns;  // ≤ 16 · panels
  const std::byte* scales;
  int64_t panel_stride;
  float* c;
  int64_t ldc;
  bool load_c;
  float power;  // what scales are multiplied by
};
/// A tile of TileSet whose sums go there at once, if it takes all of their columns; `to.sums` is not used.
using ScaledTileFn = void (*)(int64_t steps, const float* a, const std::byte* w, int64_t panel_stride,
                              const ScaledSums& to);

/// fp8 weights, multiplied as floats. The tiles read quads (packed.h) and widen them in registers, which pays
/// for few rows; widen() does it once for many, into panels of the type that `wide` multiplies. Both give the
/// bare sums of a piece of k within one scale; add_scaled() brings them to c.
struct WeightOnlyKernels {
  TileSet f8;
  const TileSet* wide;
  /// `quads` quads of one panel → floats [4 · quads][16], or pairs of bf16 [2 · quads][16].
  void (*widen_f8)(int64_t quads, const std::byte* w, std::byte* out);
  void (*add_scaled)(const ScaledSums& s);
  /// Most k of a piece. Long ones need fewer sums, short ones leave the L1 cache room for the next one.
  int64_t piece = 256;
  /// What inputs are multiplied by when they are packed, and scales afterwards (ScaledSums).
  float input_power = 1, output_power = 1;
  /// By rows − 1 and one or two panels: `wide` and add_scaled() in one. May be null.
  const ScaledTileFn (*wide_scaled)[2] = nullptr;
};

/// The largest magnitude in a row; NaN counts as the largest.
float largest_magnitude(const float* in, int64_t count);

/// int8 · int8, exact. c [rows, 16 · panels] (+)= (float(Σ a·w) · scale of a's row) · scale of the column.
/// a: rows of `quads` quads, a_stride bytes apart, each one's scale (f32) scale_at bytes after its begin;
/// w: whole panels. Meanwhile as much from `ahead` on, of each panel panel_stride further, comes to the
/// caches.
using Int8TileFn = void (*)(int64_t quads, const std::byte* a, int64_t a_stride, int64_t scale_at,
                            const std::byte* w, int64_t panel_stride, float* c, int64_t ldc, bool load_c,
                            const std::byte* ahead);

struct Int8Kernels {
  int max_rows;
  Int8TileFn tile[kMaxTileRows][3];  // as in TileSet
  /// in[count] → the tiles' form of int8: count bytes, zeros up to a multiple of 64, the scale s (f32).
  /// out may be where in is. A row with NaN or infinity gets a NaN or infinite scale.
  void (*quantise_row)(const float* in, int64_t count, std::byte* out);
  /// The same with 16 bits (Inputs::kInt16) in two rows, whose scales are 255 · s and s. Not in place. Null
  /// where they are one row of int16 instead (int16_kernels_avx2).
  void (*split_row)(const float* in, int64_t count, std::byte* high, std::byte* low) = nullptr;
  void (*done)() = nullptr;  // as in TileSet
  /// As in TileSet, for tall_panels panels and from tall_rows rows on.
  void (*tall)(int64_t rows, int64_t quads, const std::byte* a, int64_t a_stride, int64_t scale_at,
               const std::byte* w, int64_t panel_stride, float* c, int64_t ldc, bool load_c,
               const std::byte* next) = nullptr;
  int tall_panels = 2, tall_rows = 0;
  /// A row: bytes of a value up to the scale, and behind the 64 bytes of the scale, where int8_kernels_avx2
  /// has the values once more, as int16 in the order 0 2 1 3 of each four.
  int value_bytes = 1, value_bytes_behind = 0;
};
/// Int8Kernels::tile of AVX2 for 4 to 6 rows.
extern const Int8TileFn kInt8TilesFrom4Avx2[3];
/// Int8Kernels::tall of AVX2: one panel.
void int8_tall_avx2(int64_t rows, int64_t quads, const std::byte* a, int64_t a_stride, int64_t scale_at,
                    const std::byte* w, int64_t panel_stride, float* c, int64_t ldc, bool load_c,
                    const std::byte* next);

const WeightOnlyKernels* weight_only_portable();
const WeightOnlyKernels* weight_only_avx2();
const WeightOnlyKernels* weight_only_avx512();
/// Tiles for few rows of pairs of bf16 that give the bits of tdpbf16ps.
TileSet bf16_tiles_like_amx();
TileSet f8_tiles_like_amx();
/// With inputs rounded to bf16: fp8 weights are bf16 exactly, so vdpbf16ps multiplies them.
const WeightOnlyKernels* weight_only_avx512bf16();
const Int8Kernels* int8_kernels_portable();
const Int8Kernels* int8_kernels_avx2();
/// Inputs::kInt16 in one row of int16.
const Int8Kernels* int16_kernels_avx2();
/// Its quantise_row: int16 in that order, zeros up to a multiple of 64, then the scale. Not in place of `in`.
void round_to_16_bits_avx2(const float* in, int64_t count, std::byte* out);
const Int8Kernels* int8_kernels_avx512();
const WeightOnlyKernels* weight_only_amx();
const Int8Kernels* int8_kernels_amx();

const GemmKernels* gemm_kernels_portable();
const GemmKernels* gemm_kernels_avx2();
/// For fp8 that was widened to float32: chains of kSumStepsNarrow.
const TileSet* widened_tiles_avx2();
extern const ScaledTileFn kScaledTilesAvx2[6][2];
const GemmKernels* gemm_kernels_avx512();
/// bf16 · bf16 by vdpbf16ps. Its rounding (to nearest, subnormals flushed) is the instruction's own.
const TileSet* dot_tiles_avx512bf16();
/// The same by tdpbf16ps.
const TileSet* dot_tiles_amx();

/// c [rows, 16] = a · w for up to 16 rows of pairs of bf16 that lie where they are, `a_stride` bytes apart;
/// w: `words` steps of one panel. ahead.lines: at most those of `a`.
using PairRowsFn = void (*)(int rows, int64_t words, const std::byte* a, int64_t a_stride, const std::byte* w,
                            float* c, const Streams& ahead);
PairRowsFn pair_rows_avx512bf16();
PairRowsFn pair_rows_amx();

}  // namespace duet::gemm_detail
