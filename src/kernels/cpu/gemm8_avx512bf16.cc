#include <immintrin.h>

#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/widen8_avx512bf16.h"

// fp8 weights as bf16 (widen8_avx512bf16.h), multiplied by vdpbf16ps.

namespace duet::gemm_detail {
namespace {

constexpr int64_t kAhead = 1024;

template <int R, int P>
[[gnu::always_inline]] inline void multiply_pair(__m512 (&acc)[R][P], const __m512i (&w)[P], const float* a) {
  DUET_UNROLL
  for (int r = 0; r < R; ++r) {
    const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_ps(a[r * kRowWords]));
    DUET_UNROLL
    for (int p = 0; p < P; ++p) {
      acc[r][p] = _mm512_dpbf16_ps(acc[r][p], x, reinterpret_cast<__m512bh>(w[p]));
      asm("" : "+v"(acc[r][p]));  // in place, see gemm8_avx512.cc
    }
  }
}

/// Bare sums, in the chains of the bf16 dot tiles.
template <int R, int P>
void tile(int64_t steps, const float* a, const std::byte* w, int64_t panel_stride, float* c, int64_t ldc,
          bool load_c) {
  alignas(64) float sum[R * P * 16] = {};
  const Tables tables;
  for (int64_t s = 0, end; s < steps; s = end) {
    end = steps - s < kSumStepsNarrow ? steps : s + kSumStepsNarrow;
    __m512 acc[R][P];
    DUET_UNROLL
    for (int r = 0; r < R; ++r) {
      DUET_UNROLL
      for (int p = 0; p < P; ++p) acc[r][p] = _mm512_setzero_ps();
    }
    for (int64_t k = s; k < end; k += 2) {
      __m512i first[P], second[P];
      DUET_UNROLL
      for (int p = 0; p < P; ++p) {
        const std::byte* from = w + p * panel_stride + k * 32;
        _mm_prefetch(reinterpret_cast<const char*>(from + kAhead), _MM_HINT_T0);
        tables.widen(from, first[p], second[p]);
      }
      multiply_pair<R, P>(acc, first, a + k);
      multiply_pair<R, P>(acc, second, a + k + 1);
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
  return {8,  // the tables take six registers
          true,
          {{tile<1, 1>, tile<1, 2>, tile<1, 4>},
           {tile<2, 1>, tile<2, 2>, tile<2, 4>},
           {tile<3, 1>, tile<3, 2>, nullptr},
           {tile<4, 1>, tile<4, 2>, nullptr},
           {tile<5, 1>, tile<5, 2>, nullptr},
           {tile<6, 1>, tile<6, 2>, nullptr},
           {tile<7, 1>, tile<7, 2>, nullptr},
           {tile<8, 1>, tile<8, 2>, nullptr}}};
}

void widen(int64_t quads, const std::byte* w, std::byte* out) {
  const Tables tables;
  for (int64_t q = 0; q < quads; ++q, w += 64, out += 128) {
    __m512i first, second;
    _mm_prefetch(reinterpret_cast<const char*>(w + kAhead), _MM_HINT_T0);
    tables.widen(w, first, second);
    _mm512_storeu_si512(out, first);
    _mm512_storeu_si512(out + 64, second);
  }
}

}  // namespace

const WeightOnlyKernels* weight_only_avx512bf16() {
  static const WeightOnlyKernels kernels = {tiles(), dot_tiles_avx512bf16(), widen,
                                            weight_only_avx512()->add_scaled};
  return &kernels;
}

}  // namespace duet::gemm_detail
