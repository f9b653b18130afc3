#include <immintrin.h>

#include "kernels/cpu/gemm_kernels.h"

// As gemm_avx512.cc, but a step is a pair of k: one vdpbf16ps does 32 multiply-adds.

namespace duet::gemm_detail {
namespace {

constexpr int64_t kAhead = 1024;

/// acc += the pairs [0, steps) of a and w.
template <int R, int P>
[[gnu::always_inline]] inline void multiply(__m512 (&acc)[R][P], int64_t steps, const float* a,
                                            const std::byte* w, int64_t panel_stride) {
  for (int64_t s = 0; s < steps; ++s, w += 64) {
    __m512bh pair[P];
    DUET_UNROLL
    for (int p = 0; p < P; ++p) {
      const std::byte* from = w + p * panel_stride;
      _mm_prefetch(reinterpret_cast<const char*>(from + kAhead), _MM_HINT_T0);
      pair[p] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(from));
    }
    DUET_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_ps(a[r * kRowWords + s]));
      DUET_UNROLL
      for (int p = 0; p < P; ++p) acc[r][p] = _mm512_dpbf16_ps(acc[r][p], x, pair[p]);
    }
  }
}

template <int R, int P>
void tile(int64_t steps, const float* a, const std::byte* w, int64_t panel_stride, float* c, int64_t ldc,
          bool load_c) {
  alignas(64) float sum[R * P * 16] = {};
  for (int64_t s = 0, end; s < steps; s = end) {
    end = steps - s < kSumStepsNarrow ? steps : s + kSumStepsNarrow;
    __m512 acc[R][P];
    DUET_UNROLL
    for (int r = 0; r < R; ++r) {
      DUET_UNROLL
      for (int p = 0; p < P; ++p) acc[r][p] = _mm512_setzero_ps();
    }
    multiply<R, P>(acc, end - s, a + s, w + s * 64, panel_stride);
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

/// Eight chains hide the latency of the dot product, and their sums stay in registers.
constexpr int kRowsTile = 8;
template <int R>
void pair_rows_tile(int64_t words, const std::byte* a, int64_t a_stride, const std::byte* w, float* c,
                    const Streams& ahead, int64_t line) {
  __m512 sum[R];
  DUET_UNROLL
  for (int r = 0; r < R; ++r) sum[r] = _mm512_setzero_ps();
  for (int64_t s = 0; s < words; s += kSumStepsNarrow) {
    const int64_t end = words - s < kSumStepsNarrow ? words : s + kSumStepsNarrow;
    __m512 acc[R];
    DUET_UNROLL
    for (int r = 0; r < R; ++r) acc[r] = _mm512_setzero_ps();
    for (int64_t i = s; i < end; ++i) {
      const auto pair = reinterpret_cast<__m512bh>(_mm512_loadu_si512(w + i * 64));
      if (i % 16 == 0 && line < ahead.lines) {
        bring(ahead, line, line + R < ahead.lines ? line + R : ahead.lines);
        line += R;
      }
      DUET_UNROLL
      for (int r = 0; r < R; ++r) {
        float x;
        __builtin_memcpy(&x, a + r * a_stride + i * 4, sizeof x);
        acc[r] = _mm512_dpbf16_ps(acc[r], reinterpret_cast<__m512bh>(_mm512_set1_ps(x)), pair);
      }
    }
    DUET_UNROLL
    for (int r = 0; r < R; ++r) sum[r] = _mm512_add_ps(sum[r], acc[r]);
  }
  DUET_UNROLL
  for (int r = 0; r < R; ++r) _mm512_storeu_ps(c + r * 16, sum[r]);
}

void pair_rows(int rows, int64_t words, const std::byte* a, int64_t a_stride, const std::byte* w, float* c,
               const Streams& ahead) {
  static constexpr decltype(&pair_rows_tile<1>) kOfHeight[kRowsTile] = {
      pair_rows_tile<1>, pair_rows_tile<2>, pair_rows_tile<3>, pair_rows_tile<4>,
      pair_rows_tile<5>, pair_rows_tile<6>, pair_rows_tile<7>, pair_rows_tile<8>};
  for (int row = 0, height; row < rows; row += height) {
    height = rows - row < kRowsTile ? rows - row : kRowsTile;
    kOfHeight[height - 1](words, a + row * a_stride, a_stride, w, c + row * 16, ahead, row * words / 16);
  }
}

constexpr TileSet kTiles = {12,
                            true,
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

}  // namespace

const TileSet* dot_tiles_avx512bf16() {
  return &kTiles;
}

PairRowsFn pair_rows_avx512bf16() {
  return pair_rows;
}

}  // namespace duet::gemm_detail
