// The vectorised inner loops behind norm, RoPE, softmax and the packing of attention tiles: a
// table of functions per level. Called by the ops in kernels/cpu only. Each function gives the
// same bits for a row wherever the row lies and whoever calls; levels differ only by FMA in exp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/cpu.h"
#include "kernels/cpu/streams.h"

namespace duet {

/// One tile of scores → probabilities, with the running maximum and sum of each row. The maximum may lag
/// behind by a little (kLag in row_kernels_body.h): probabilities are then up to e^kLag, and the output so
/// far need not be rescaled.
struct SoftmaxTile {
  float* scores = nullptr;  // [rows, stride]; on return p, zeros from a row's last key to `keys`
  int64_t stride = 0;       // multiple of 16, ≥ keys
  int64_t rows = 0;
  int64_t keys = 0;  // columns that the product with V reads
  // Row i sees columns [0, min(keys, first_valid + ⌊i / alike⌋ · step)), at least one.
  int64_t first_valid = 0;
  int64_t step = 0;   // 1: causal rows; 0: rows are heads of one token
  int64_t alike = 1;  // rows of one token
  float scale = 1.0f;
  bool first = false;           // no earlier tile: max and sum are written, not read
  float* max = nullptr;         // [rows]
  float* sum = nullptr;         // [rows]
  float* correction = nullptr;  // [rows]: what the output so far is to be multiplied by
};

/// c [rows, 16] (+)= a · w in float32, for factors that lie where they are: in chains of 16 steps, each from
/// zero, added in order, so that a result does not depend on `rows`.
struct RowsProduct {
  const float* a = nullptr;  // [rows, steps], rows `a_stride` apart
  int64_t a_stride = 0;
  int64_t rows = 0;  // any number
  int64_t steps = 0;
  /// Step s of w: 16 floats at groups[s / 16] + s % 16 · w_stride + column; without groups at w + s ·
  /// w_stride.
  const float* w = nullptr;
  const float* const* groups = nullptr;
  int64_t column = 0;
  int64_t w_stride = 0;
  float* c = nullptr;
  int64_t ldc = 0;
  bool load_c = false;
  Streams ahead;
};

/// c [rows, 16] (+)= (float(Σ a · w) · the row's scale) · the column's, for integers whose sum stays within
/// 32 bits and is exact.
struct IntProduct {
  const int16_t* a = nullptr;  // [rows, 2 · pairs], rows `a_stride` apart
  int64_t a_stride = 0;
  int64_t rows = 0;  // any number
  int64_t pairs = 0;
  const int16_t* w = nullptr;            // [pairs][16][2]
  const float* row_scales = nullptr;     // [rows]
  const float* column_scales = nullptr;  // [16]
  float* c = nullptr;
  int64_t ldc = 0;
  bool load_c = false;
  Streams ahead;
};

struct RowKernels {
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  /// Pairs (2j, 2j+1) of x rotated by cos[j], sin[j], j < half.
  void (*rope)(float* x, const float* cos, const float* sin, int64_t half);
  /// The same for pairs (j, j + half).
  void (*rope_halves)(float* x, const float* cos, const float* sin, int64_t half);
  void (*add)(const float* x, float* out, int64_t n);
  /// out = x · factor + 0: a zero comes out positive, so the sign of an underflow can't show.
  void (*scale)(const float* x, float factor, int64_t n, float* out);
  /// out = out · a + x · b + 0.
  void (*blend)(const float* x, float b, float a, int64_t n, float* out);
  /// out = e^(x - shift).
  void (*exp)(const float* x, float shift, int64_t n, float* out);
  /// Largest value, NaN passed over, -infinity when there is none.
  float (*max)(const float* x, int64_t n);
  void (*softmax)(const SoftmaxTile& tile);
  void (*multiply_rows)(const RowsProduct& product);

  /// In place: rounded to binary16 and back.
  void (*round_f16)(float* x, int64_t n);
  void (*f16_to_f32)(const uint16_t* x, int64_t n, float* out);
  /// One panel (packed.h) of up to 16 rows of 32-bit units: out[u · 16 + r] = rows[r · stride + u],
  /// zero for r ≥ count. A unit is one f32, or two neighbouring bf16.
  void (*pack_columns)(const uint32_t* rows, int64_t stride, int64_t count, int64_t units, uint32_t* out);
  /// Panels whose output columns run along the rows: [k, n] row-major → packed [n, k], or the k of a larger
  /// one. `panel`: elements of `out` from one panel to the next, at least those of k.
  void (*pack_rows_f32)(const float* rows, int64_t stride, int64_t k, int64_t n, float* out, int64_t panel);
  void (*pack_rows_bf16)(const uint16_t* rows, int64_t stride, int64_t k, int64_t n, uint16_t* out,
                         int64_t panel);

  // Integers (row_integers_body.h), for the int8 latent cache (kernels/latent8.h).
  void (*multiply_i16)(const IntProduct& product);
  /// out[i] = round(v[i] / scale) with v = x · factors (null: x) and scale = the largest |v| / most, which is
  /// returned, as row_scale() gives it.
  float (*to_i16)(const float* x, const float* factors, int64_t n, int most, int16_t* out);
  void (*i8_to_i16)(const int8_t* x, int64_t n, int16_t* out);
  /// out = x · scale.
  void (*i8_to_f32)(const int8_t* x, float scale, int64_t n, float* out);
  /// `columns` ≤ 16 of k rows → [⌈k / 2⌉][16][2], zero behind their ends.
  void (*pack_rows_i8)(const int8_t* rows, int64_t stride, int64_t k, int64_t columns, int16_t* out);
};

const RowKernels& row_kernels(CpuLevel level);

/// A row's scale, largest / most, and 1 / scale; both 0 where that would overflow.
struct RowScale {
  float scale, inverse;
};
RowScale row_scale(float largest, int most);

extern const RowKernels kRowKernelsPortable;
#if defined(__x86_64__)
extern const RowKernels kRowKernelsAvx2;
extern const RowKernels kRowKernelsAvx512;
#endif

}  // namespace duet
