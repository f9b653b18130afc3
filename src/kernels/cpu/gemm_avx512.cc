#include <immintrin.h>

#include "kernels/cpu/gemm_kernels.h"

// 12 rows × 2 panels: 24 accumulators, 2 weights and a broadcast in 32 registers; per k 24
// multiply-adds against 14 loads. Few rows: 4 panels, four sequential streams from memory.

namespace duet::gemm_detail {
namespace {

enum class Kind { kF32, kBf16, kF16 };
constexpr int64_t kAhead = 1024;  // bytes of prefetch: one core reaches 31 GB/s with 1 KiB ahead

template <int R, int P>
[[gnu::always_inline]] inline void multiply_step(__m512 (&acc)[R][P], const __m512 (&w)[P], const float* a) {
  DUET_UNROLL
  for (int r = 0; r < R; ++r) {
    const __m512 x = _mm512_set1_ps(a[r * kRowWords]);
    DUET_UNROLL
    for (int p = 0; p < P; ++p) acc[r][p] = _mm512_fmadd_ps(x, w[p], acc[r][p]);
  }
}

template <Kind K, int R, int P>
[[gnu::always_inline]] inline void multiply(__m512 (&acc)[R][P], int64_t steps, const float* a,
                                            const std::byte* w, int64_t panel_stride) {
  __m512 wide[P];
  if constexpr (K == Kind::kF32) {
    for (int64_t s = 0; s < steps; ++s, w += 64) {
      DUET_UNROLL
      for (int p = 0; p < P; ++p) {
        const std::byte* from = w + p * panel_stride;
        _mm_prefetch(reinterpret_cast<const char*>(from + kAhead), _MM_HINT_T0);
        wide[p] = _mm512_loadu_ps(from);
      }
      multiply_step<R, P>(acc, wide, a + s);
    }
  } else if constexpr (K == Kind::kBf16) {
    // A word holds two k of one column: the even one below, the odd one above.
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    for (int64_t s = 0; s < steps; s += 2, w += 64) {
      __m512i raw[P];
      DUET_UNROLL
      for (int p = 0; p < P; ++p) {
        const std::byte* from = w + p * panel_stride;
        _mm_prefetch(reinterpret_cast<const char*>(from + kAhead), _MM_HINT_T0);
        raw[p] = _mm512_loadu_si512(from);
        wide[p] = _mm512_castsi512_ps(_mm512_slli_epi32(raw[p], 16));
      }
      multiply_step<R, P>(acc, wide, a + s);
      if (s + 1 == steps) break;
      DUET_UNROLL
      for (int p = 0; p < P; ++p) wide[p] = _mm512_castsi512_ps(_mm512_and_si512(raw[p], high));
      multiply_step<R, P>(acc, wide, a + s + 1);
    }
  } else {
    for (int64_t s = 0; s < steps; ++s, w += 32) {
      DUET_UNROLL
      for (int p = 0; p < P; ++p) {
        const std::byte* from = w + p * panel_stride;
        _mm_prefetch(reinterpret_cast<const char*>(from + kAhead), _MM_HINT_T0);
        wide[p] = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
      }
      multiply_step<R, P>(acc, wide, a + s);
    }
  }
}

template <Kind K, int R, int P>
void tile(int64_t steps, const float* a, const std::byte* w, int64_t panel_stride, float* c, int64_t ldc,
          bool load_c) {
  constexpr int64_t kChain = K == Kind::kF32 ? kSumSteps : kSumStepsNarrow;
  constexpr int64_t kStepBytes = K == Kind::kF32 ? 64 : 32;
  alignas(64) float sum[R * P * 16] = {};
  for (int64_t s = 0, end; s < steps; s = end) {
    end = steps - s < kChain ? steps : s + kChain;
    __m512 acc[R][P];
    DUET_UNROLL
    for (int r = 0; r < R; ++r) {
      DUET_UNROLL
      for (int p = 0; p < P; ++p) acc[r][p] = _mm512_setzero_ps();
    }
    multiply<K, R, P>(acc, end - s, a + s, w + s * kStepBytes, panel_stride);
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

template <Kind K>
constexpr TileSet tiles() {
  return {12,
          false,
          {{tile<K, 1, 1>, tile<K, 1, 2>, tile<K, 1, 4>},
           {tile<K, 2, 1>, tile<K, 2, 2>, tile<K, 2, 4>},
           {tile<K, 3, 1>, tile<K, 3, 2>, tile<K, 3, 4>},
           {tile<K, 4, 1>, tile<K, 4, 2>, tile<K, 4, 4>},
           {tile<K, 5, 1>, tile<K, 5, 2>, nullptr},
           {tile<K, 6, 1>, tile<K, 6, 2>, nullptr},
           {tile<K, 7, 1>, tile<K, 7, 2>, nullptr},
           {tile<K, 8, 1>, tile<K, 8, 2>, nullptr},
           {tile<K, 9, 1>, tile<K, 9, 2>, nullptr},
           {tile<K, 10, 1>, tile<K, 10, 2>, nullptr},
           {tile<K, 11, 1>, tile<K, 11, 2>, nullptr},
           {tile<K, 12, 1>, tile<K, 12, 2>, nullptr}}};
}

__m512 to_bf16_and_back(__m512 v) {
  const __m512i u = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i bits = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
  return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

__m512 to_f16_and_back(__m512 v) {
  return _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

void round_row(Rounding rounding, const float* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t left = count - i;
    const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffffu : (1u << left) - 1u);
    __m512 v = _mm512_maskz_loadu_ps(mask, in + i);
    if (rounding == Rounding::kBf16) v = to_bf16_and_back(v);
    if (rounding == Rounding::kF16) v = to_f16_and_back(v);
    _mm512_mask_storeu_ps(out + i, mask, v);
  }
}

constexpr GemmKernels kKernels = {tiles<Kind::kF32>(), tiles<Kind::kBf16>(), tiles<Kind::kF16>(), round_row};

}  // namespace

const GemmKernels* gemm_kernels_avx512() {
  return &kKernels;
}

}  // namespace duet::gemm_detail
