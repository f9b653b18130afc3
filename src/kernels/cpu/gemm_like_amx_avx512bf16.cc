#include <immintrin.h>

#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/widen8_avx512bf16.h"

// The bits of tdpbf16ps from vector registers, for few rows: setting tiles up, and widening fp8 weights
// into them, would take longer than reading the weights. The instruction adds the products of the 16 even k
// of a tile from zero, those of the odd ones from zero, and their sum to the total; each step is fused and
// rounded to nearest, and subnormal operands and results are zero.

namespace duet::gemm_detail {
namespace {

constexpr int64_t kAhead = 1024;
constexpr int64_t kChain = 16;              // pairs of a tile
constexpr unsigned kNoSubnormals = 0x8040;  // of MXCSR

/// Weights: kPairs pairs of bf16 of 16 columns from 64 bytes.
struct Bf16Weights {
  static constexpr int kPairs = 1;
  [[gnu::always_inline]] void widen(const std::byte* w, __m512i (&pairs)[1]) const {
    pairs[0] = _mm512_loadu_si512(w);
  }
};
struct ByteWeights {
  static constexpr int kPairs = 2;
  Tables tables;
  [[gnu::always_inline]] void widen(const std::byte* w, __m512i (&pairs)[2]) const {
    tables.widen(w, pairs[0], pairs[1]);
  }
};

/// sum += `count` pairs, at most kChain and a multiple of W::kPairs.
template <typename W, int R, int P>
[[gnu::always_inline]] inline void add_chain(const W& weights, const float* a, const std::byte* w,
                                             int64_t panel_stride, int64_t count, float* sum) {
  __m512 even[R][P], odd[R][P];
  DUET_UNROLL
  for (int r = 0; r < R; ++r) {
    DUET_UNROLL
    for (int p = 0; p < P; ++p) even[r][p] = odd[r][p] = _mm512_setzero_ps();
  }
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  for (int64_t i = 0; i < count; i += W::kPairs, a += W::kPairs, w += 64) {
    __m512i pairs[P][W::kPairs];
    DUET_UNROLL
    for (int p = 0; p < P; ++p) {
      const std::byte* from = w + p * panel_stride;
      _mm_prefetch(reinterpret_cast<const char*>(from + kAhead), _MM_HINT_T0);
      weights.widen(from, pairs[p]);
    }
    DUET_UNROLL
    for (int j = 0; j < W::kPairs; ++j) {
      __m512 w0[P], w1[P];
      DUET_UNROLL
      for (int p = 0; p < P; ++p) {
        w0[p] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs[p][j], 16));
        w1[p] = _mm512_castsi512_ps(_mm512_and_si512(pairs[p][j], high));
      }
      DUET_UNROLL
      for (int r = 0; r < R; ++r) {
        const __m512i x = _mm512_castps_si512(_mm512_set1_ps(a[r * kRowWords + j]));
        const __m512 x0 = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
        const __m512 x1 = _mm512_castsi512_ps(_mm512_and_si512(x, high));
        DUET_UNROLL
        for (int p = 0; p < P; ++p) {
          even[r][p] = _mm512_fmadd_ps(x0, w0[p], even[r][p]);
          odd[r][p] = _mm512_fmadd_ps(x1, w1[p], odd[r][p]);
        }
      }
    }
  }
  DUET_UNROLL
  for (int r = 0; r < R; ++r) {
    DUET_UNROLL
    for (int p = 0; p < P; ++p) {
      float* to = sum + (r * P + p) * 16;
      _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), _mm512_add_ps(even[r][p], odd[r][p])));
    }
  }
}

template <typename W, int R, int P>
void tile(int64_t steps, const float* a, const std::byte* w, int64_t panel_stride, float* c, int64_t ldc,
          bool load_c) {
  alignas(64) float sum[R * P * 16] = {};
  const W weights{};
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(mode | kNoSubnormals);
  for (int64_t s = 0; s < steps; s += kChain) {
    add_chain<W, R, P>(weights, a + s, w + s / W::kPairs * 64, panel_stride,
                       steps - s < kChain ? steps - s : kChain, sum);
  }
  _mm_setcsr(mode);
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < P; ++p) {
      float* to = c + r * ldc + p * 16;
      const __m512 total = _mm512_load_ps(sum + (r * P + p) * 16);
      _mm512_storeu_ps(to, load_c ? _mm512_add_ps(_mm512_loadu_ps(to), total) : total);
    }
  }
}

template <typename W>
constexpr TileSet tiles() {
  return {2, true, {{tile<W, 1, 1>, tile<W, 1, 2>, tile<W, 1, 4>}, {tile<W, 2, 1>, tile<W, 2, 2>, nullptr}}};
}

}  // namespace

TileSet bf16_tiles_like_amx() {
  return tiles<Bf16Weights>();
}

TileSet f8_tiles_like_amx() {
  return tiles<ByteWeights>();
}

}  // namespace duet::gemm_detail
