#include <immintrin.h>

#include "kernels/cpu/gemm_kernels.h"

// 8-bit weights. A quad (packed.h) is 16 columns × 4 k, one register. fp8: each k of a quad is widened to 16
// float32 lanes. int8: vpdpbusd takes unsigned by signed bytes, so activations are stored
// 128 too large, and 128 · Σ w (kept in the panel) is taken off at the end; sums wrap and come out exact.

namespace duet::gemm_detail {
namespace {

constexpr int64_t kAhead = 1024;  // bytes of prefetch: one core reaches 31 GB/s with 1 KiB ahead

/// k number J of a quad, 16 columns.
template <int J>
[[gnu::always_inline]] inline __m512 widen_step(__m512i quad) {
  // Columns come apart as words, in the upper half of a lane: k 1 (or 3) above k 0 (or 2).
  const __m512i zero = _mm512_setzero_si512();
  __m512i top = J < 2 ? _mm512_unpacklo_epi16(zero, quad) : _mm512_unpackhi_epi16(zero, quad);
  if constexpr (J % 2 == 0) top = _mm512_slli_epi32(top, 8);
  // Sign, exponent and mantissa to float32's places, then rescaled: exact, subnormal numbers too.
  const __m512i bits =
      _mm512_and_si512(_mm512_srai_epi32(top, 4), _mm512_set1_epi32(static_cast<int>(0x87f00000u)));
  return _mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(0x1p120f));
}

template <int R, int P, int J>
[[gnu::always_inline]] inline void multiply_step(__m512 (&acc)[R][P], const __m512i (&quad)[P],
                                                 const float* a) {
  __m512 w[P];
  DUET_UNROLL
  for (int p = 0; p < P; ++p) w[p] = widen_step<J>(quad[p]);
  DUET_UNROLL
  for (int r = 0; r < R; ++r) {
    const __m512 x = _mm512_set1_ps(a[r * kRowWords + J]);
    DUET_UNROLL
    for (int p = 0; p < P; ++p) {
      acc[r][p] = _mm512_fmadd_ps(x, w[p], acc[r][p]);
      asm("" : "+v"(acc[r][p]));  // in place, see below
    }
  }
}

/// Bare sums, in the chains of the float32 tiles.
template <int R, int P>
void tile(int64_t steps, const float* a, const std::byte* w, int64_t panel_stride, float* c, int64_t ldc,
          bool load_c) {
  alignas(64) float sum[R * P * 16] = {};
  for (int64_t s = 0, end; s < steps; s = end) {
    end = steps - s < kSumSteps ? steps : s + kSumSteps;
    __m512 acc[R][P];
    DUET_UNROLL
    for (int r = 0; r < R; ++r) {
      DUET_UNROLL
      for (int p = 0; p < P; ++p) acc[r][p] = _mm512_setzero_ps();
    }
    for (int64_t k = s; k < end; k += 4) {
      __m512i quad[P];
      DUET_UNROLL
      for (int p = 0; p < P; ++p) {
        const std::byte* from = w + p * panel_stride + k * 16;
        _mm_prefetch(reinterpret_cast<const char*>(from + kAhead), _MM_HINT_T0);
        quad[p] = _mm512_loadu_si512(from);
      }
      multiply_step<R, P, 0>(acc, quad, a + k);
      multiply_step<R, P, 1>(acc, quad, a + k);
      multiply_step<R, P, 2>(acc, quad, a + k);
      multiply_step<R, P, 3>(acc, quad, a + k);
    }
    DUET_UNROLL
    for (int r = 0; r < R; ++r) {
      DUET_UNROLL
      for (int p = 0; p < P; ++p) {
        float* to = sum + (r * P + p) * 16;
        _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), acc[r][p]));
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < P; ++p) {
      float* to = c + r * ldc + p * 16;
      const __m512 total = _mm512_load_ps(sum + (r * P + p) * 16);
      _mm512_storeu_ps(to, load_c ? _mm512_add_ps(_mm512_loadu_ps(to), total) : total);
    }
  }
}

constexpr TileSet tiles() {
  return {12,
          false,
          {{tile<1, 1>, tile<1, 2>, tile<1, 4>},
           {tile<2, 1>, tile<2, 2>, tile<2, 4>},
           {tile<3, 1>, tile<3, 2>, tile<3, 4>},
           {tile<4, 1>, tile<4, 2>, tile<4, 4>},
           {tile<5, 1>, tile<5, 2>, nullptr},
           {tile<6, 1>, tile<6, 2>, nullptr},
           {tile<7, 1>, tile<7, 2>, nullptr},
           {tile<8, 1>, tile<8, 2>, nullptr},
           {tile<9, 1>, tile<9, 2>, nullptr},
           {tile<10, 1>, tile<10, 2>, nullptr},
           {tile<11, 1>, tile<11, 2>, nullptr},
           {tile<12, 1>, tile<12, 2>, nullptr}}};
}

void widen(int64_t quads, const std::byte* w, std::byte* out) {
  for (int64_t q = 0; q < quads; ++q, w += 64, out += 256) {
    const __m512i quad = _mm512_loadu_si512(w);
    _mm512_storeu_ps(out, widen_step<0>(quad));
    _mm512_storeu_ps(out + 64, widen_step<1>(quad));
    _mm512_storeu_ps(out + 128, widen_step<2>(quad));
    _mm512_storeu_ps(out + 192, widen_step<3>(quad));
  }
}

void add_scaled(const ScaledSums& s) {
  for (int p = 0; p < s.panels; ++p) {
    const int64_t left = s.columns - p * 16;
    const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffffu : (1u << left) - 1u);
    const __m512 scale = _mm512_loadu_ps(s.scales + p * s.panel_stride);
    const float* sums = s.sums + p * 16;
    float* c = s.c + p * 16;
    for (int r = 0; r < s.rows; ++r, sums += s.panels * 16, c += s.ldc) {
      const __m512 sum = _mm512_loadu_ps(sums);
      const __m512 to =
          s.load_c ? _mm512_fmadd_ps(sum, scale, _mm512_maskz_loadu_ps(mask, c)) : _mm512_mul_ps(sum, scale);
      _mm512_mask_storeu_ps(c, mask, to);
    }
  }
}

// ---- int8 · int8 --------------------------------------------------------------------------------

template <int R, int P>
void int8_tile(int64_t quads, const std::byte* a, int64_t a_stride, int64_t scale_at, const std::byte* w,
               int64_t panel_stride, float* c, int64_t ldc, bool load_c, const std::byte* ahead) {
  __m512i acc[R][P];
  DUET_UNROLL
  for (int r = 0; r < R; ++r) {
    DUET_UNROLL
    for (int p = 0; p < P; ++p) acc[r][p] = _mm512_setzero_si512();
  }
  // A pointer for every three rows: base, base + stride, base + 2 · stride are addresses, where a pointer
  // per row would take registers that are not there.
  const std::byte* rows[(R + 2) / 3];
  DUET_UNROLL
  for (int i = 0; i < (R + 2) / 3; ++i) rows[i] = a + i * 3 * a_stride;
  const std::byte* from = w + 128;
  for (int64_t q = 0; q < quads; ++q, from += 64, ahead += 64) {
    __m512i quad[P];
    DUET_UNROLL
    for (int p = 0; p < P; ++p) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead + p * panel_stride), _MM_HINT_T0);
      quad[p] = _mm512_loadu_si512(from + p * panel_stride);
    }
    DUET_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512i x = _mm512_set1_epi32(*reinterpret_cast<const int*>(rows[r / 3] + r % 3 * a_stride));
      DUET_UNROLL
      for (int p = 0; p < P; ++p) {
        acc[r][p] = _mm512_dpbusd_epi32(acc[r][p], x, quad[p]);
        asm("" : "+v"(acc[r][p]));  // in place; without it the compiler copies sums to the stack each turn
      }
    }
    DUET_UNROLL
    for (int i = 0; i < (R + 2) / 3; ++i) {
      rows[i] += 4;
      asm("" : "+r"(rows[i]));  // or the compiler makes twelve pointers of them after all
    }
  }
  // Unrolled as well: an index that is not a constant would move the sums to memory for good.
  DUET_UNROLL
  for (int r = 0; r < R; ++r) {
    const __m512 row_scale = _mm512_set1_ps(*reinterpret_cast<const float*>(a + r * a_stride + scale_at));
    DUET_UNROLL
    for (int p = 0; p < P; ++p) {
      const __m512i excess = _mm512_loadu_si512(w + p * panel_stride + 64);
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(acc[r][p], excess));
      const __m512 v = _mm512_mul_ps(_mm512_mul_ps(sum, row_scale), _mm512_loadu_ps(w + p * panel_stride));
      float* to = c + r * ldc + p * 16;
      _mm512_storeu_ps(to, load_c ? _mm512_add_ps(_mm512_loadu_ps(to), v) : v);
    }
  }
}

/// A row of floats, zeros behind its end, and its largest magnitude.
struct FloatRow {
  const float* in;
  int64_t count;

  __m512 at(int64_t i) const {
    const auto mask = static_cast<__mmask16>(count - i >= 16 ? 0xffffu : (1u << (count - i)) - 1u);
    return _mm512_maskz_loadu_ps(mask, in + i);
  }
  float largest() const {
    // As integers, magnitudes keep their order, and NaN is the largest.
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i most = _mm512_setzero_si512();
    for (int64_t i = 0; i < count; i += 16) {
      most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_castps_si512(at(i)), magnitude));
    }
    return __builtin_bit_cast(float, _mm512_reduce_max_epu32(most));
  }
};

/// 16 values as the tiles want them: unsigned, 128 too large.
void store_bytes(__m512i values, std::byte* out) {
  const __m128i shift = _mm_set1_epi8(static_cast<char>(0x80));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_xor_si128(_mm512_cvtsepi32_epi8(values), shift));
}

/// Zeros up to a multiple of 64, then the scale.
void end_row(int64_t count, float scale, std::byte* out) {
  const int64_t padded = (count + 63) / 64 * 64;
  for (int64_t i = (count + 15) / 16 * 16; i < padded; ++i) out[i] = std::byte{0x80};
  *reinterpret_cast<float*>(out + padded) = scale;
}

void quantise_row(const float* in, int64_t count, std::byte* out) {
  const FloatRow row{in, count};
  const RowScale s = row_scale(row.largest(), 127);
  const __m512 inverse = _mm512_set1_ps(s.inverse);
  for (int64_t i = 0; i < count; i += 16) {
    store_bytes(_mm512_cvtps_epi32(_mm512_mul_ps(row.at(i), inverse)), out + i);
  }
  end_row(count, s.scale, out);
}

void split_row(const float* in, int64_t count, std::byte* high, std::byte* low) {
  const FloatRow row{in, count};
  const RowScale s = row_scale(row.largest(), kInt16Most);
  const __m512 inverse = _mm512_set1_ps(s.inverse);
  const __m512 part = _mm512_set1_ps(1.0f / kInt16Base);
  const __m512i base = _mm512_set1_epi32(kInt16Base);
  for (int64_t i = 0; i < count; i += 16) {
    const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(row.at(i), inverse));
    const __m512i h = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(q), part));
    store_bytes(h, high + i);
    store_bytes(_mm512_sub_epi32(q, _mm512_mullo_epi32(h, base)), low + i);
  }
  end_row(count, static_cast<float>(kInt16Base) * s.scale, high);
  end_row(count, s.scale, low);
}

constexpr Int8Kernels kInt8 = {12,
                               {{int8_tile<1, 1>, int8_tile<1, 2>, int8_tile<1, 4>},
                                {int8_tile<2, 1>, int8_tile<2, 2>, int8_tile<2, 4>},
                                {int8_tile<3, 1>, int8_tile<3, 2>, int8_tile<3, 4>},
                                {int8_tile<4, 1>, int8_tile<4, 2>, int8_tile<4, 4>},
                                {int8_tile<5, 1>, int8_tile<5, 2>, nullptr},
                                {int8_tile<6, 1>, int8_tile<6, 2>, nullptr},
                                {int8_tile<7, 1>, int8_tile<7, 2>, nullptr},
                                {int8_tile<8, 1>, int8_tile<8, 2>, nullptr},
                                {int8_tile<9, 1>, int8_tile<9, 2>, nullptr},
                                {int8_tile<10, 1>, int8_tile<10, 2>, nullptr},
                                {int8_tile<11, 1>, int8_tile<11, 2>, nullptr},
                                {int8_tile<12, 1>, int8_tile<12, 2>, nullptr}},
                               quantise_row,
                               split_row};

}  // namespace

const WeightOnlyKernels* weight_only_avx512() {
  static const WeightOnlyKernels kernels = {tiles(), &gemm_kernels_avx512()->f32, widen, add_scaled};
  return &kernels;
}

const Int8Kernels* int8_kernels_avx512() {
  return &kInt8;
}

}  // namespace duet::gemm_detail
