#include <immintrin.h>

#include "kernels/cpu/gemm_kernels.h"

// 6 rows × 1 panel: 12 accumulators, 2 weights and a broadcast in 16 registers (multiply-add: 2 per
// cycle, 4 cycles long, so 8 chains would do; 12 also amortise the loads). Fewer rows take more panels.

namespace duet::gemm_detail {
namespace {

/// kNear: float32 that a call before has brought to the caches. kWidened: narrow weights that were made
/// float32 once for many rows, in their longer chains.
enum class Kind { kF32, kBf16, kF16, kNear, kWidened };
template <Kind K>
constexpr int64_t kChain = K == Kind::kF32 || K == Kind::kNear ? kSumSteps : kSumStepsNarrow;
/// Of 16 columns; of bf16 half a pair of steps.
template <Kind K>
constexpr int64_t kStepBytes = K == Kind::kBf16 || K == Kind::kF16 ? 32 : 64;
constexpr int64_t kAhead = 1024;  // bytes of prefetch: one core reaches its bandwidth with 1 KiB ahead

template <bool kFirst, int R, int V>
[[gnu::always_inline]] inline void multiply_step(__m256 (&acc)[R][V], const __m256 (&w)[V], const float* a) {
  DUET_UNROLL
  for (int r = 0; r < R; ++r) {
    const __m256 x = _mm256_broadcast_ss(a + r * kRowWords);
    DUET_UNROLL
    for (int v = 0; v < V; ++v)
      acc[r][v] = kFirst ? _mm256_mul_ps(x, w[v]) : _mm256_fmadd_ps(x, w[v], acc[r][v]);
  }
}

[[gnu::always_inline]] inline __m256i load(const std::byte* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

/// Float32 and f16: step S of a group of steps at a and w.
template <Kind K, bool kFirst, int S, int R, int P>
[[gnu::always_inline]] inline void multiply_single(__m256 (&acc)[R][2 * P], const float* a,
                                                   const std::byte* w, int64_t panel_stride) {
  constexpr int64_t kHalf = kStepBytes<K> / 2;  // bytes of eight weights
  __m256 wide[2 * P];
  DUET_UNROLL
  for (int v = 0; v < 2 * P; ++v) {
    const std::byte* from = w + v / 2 * panel_stride + (2 * S + v % 2) * kHalf;
    if constexpr (K == Kind::kF32 || K == Kind::kF16) {
      if (v % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(from + kAhead), _MM_HINT_T0);
    }
    if constexpr (K != Kind::kF16) {
      wide[v] = _mm256_castsi256_ps(load(from));
    } else {
      wide[v] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
  }
  multiply_step<kFirst, R, 2 * P>(acc, wide, a + S);
}

template <Kind K, bool kFirst, int R, int P>
[[gnu::always_inline]] inline void multiply_four(__m256 (&acc)[R][2 * P], const float* a, const std::byte* w,
                                                 int64_t panel_stride) {
  multiply_single<K, kFirst, 0, R, P>(acc, a, w, panel_stride);
  multiply_single<K, false, 1, R, P>(acc, a, w, panel_stride);
  multiply_single<K, false, 2, R, P>(acc, a, w, panel_stride);
  multiply_single<K, false, 3, R, P>(acc, a, w, panel_stride);
}

/// bf16: two steps, or the last one of an odd number. A word holds two k of one column: the even one below,
/// the odd one above.
template <bool kFirst, int R, int P>
[[gnu::always_inline]] inline void multiply_pair(__m256 (&acc)[R][2 * P], const float* a, const std::byte* w,
                                                 int64_t panel_stride, bool both) {
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  __m256 wide[2 * P];
  DUET_UNROLL
  for (int v = 0; v < 2 * P; ++v) {
    const std::byte* from = w + v / 2 * panel_stride + v % 2 * 32;
    if (v % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(from + kAhead), _MM_HINT_T0);
    wide[v] = _mm256_castsi256_ps(_mm256_slli_epi32(load(from), 16));
  }
  multiply_step<kFirst, R, 2 * P>(acc, wide, a);
  if (!both) return;
  DUET_UNROLL
  for (int v = 0; v < 2 * P; ++v) {
    const std::byte* from = w + v / 2 * panel_stride + v % 2 * 32;
    wide[v] = _mm256_castsi256_ps(_mm256_and_si256(load(from), high));
  }
  multiply_step<false, R, 2 * P>(acc, wide, a + 1);
}

/// A chain of `steps` > 0. Its first step multiplies, which gives the bits of a sum that starts at zero; with
/// registers that are cleared, in a loop of single steps, Zen 3 takes a quarter longer for chains of 16.
template <Kind K, int R, int P>
[[gnu::always_inline]] inline void multiply(__m256 (&acc)[R][2 * P], int steps, const float* a,
                                            const std::byte* w, int64_t panel_stride) {
  if constexpr (K == Kind::kBf16) {
    multiply_pair<true, R, P>(acc, a, w, panel_stride, steps > 1);
    for (int s = 2; s < steps; s += 2)
      multiply_pair<false, R, P>(acc, a + s, w + s * kStepBytes<K>, panel_stride, s + 1 < steps);
  } else {
    int s = steps < 4 ? 1 : 4;
    if (s == 1) {
      multiply_single<K, true, 0, R, P>(acc, a, w, panel_stride);
    } else {
      multiply_four<K, true, R, P>(acc, a, w, panel_stride);
      for (; s + 4 <= steps; s += 4)
        multiply_four<K, false, R, P>(acc, a + s, w + s * kStepBytes<K>, panel_stride);
    }
    for (; s < steps; ++s)
      multiply_single<K, false, 0, R, P>(acc, a + s, w + s * kStepBytes<K>, panel_stride);
  }
}

/// A chain; take(r, v, eight columns of its sums). With one array of sums for all chains GCC would keep some
/// of them in memory, which costs 10 %.
template <Kind K, int R, int P, typename Take>
[[gnu::always_inline]] inline void chain(int64_t steps, const float* a, const std::byte* w,
                                         int64_t panel_stride, const Take& take) {
  __m256 acc[R][2 * P];
  multiply<K, R, P>(acc, static_cast<int>(steps), a, w, panel_stride);
  DUET_UNROLL
  for (int r = 0; r < R; ++r) {
    DUET_UNROLL
    for (int v = 0; v < 2 * P; ++v) take(r, v, acc[r][v]);
  }
}

/// All steps, chain by chain; finish(r, v, eight columns of the sum). The last chain goes on from its
/// registers.
template <Kind K, int R, int P, typename Finish>
[[gnu::always_inline]] inline void sum_chains(int64_t steps, const float* a, const std::byte* w,
                                              int64_t panel_stride, const Finish& finish) {
  alignas(64) float sum[R * P * 16];
  int64_t s = 0;
  const auto add = [&](int r, int v, __m256 to) {
    return _mm256_add_ps(s == 0 ? _mm256_setzero_ps() : _mm256_load_ps(sum + (r * 2 * P + v) * 8), to);
  };
  for (; s + kChain<K> < steps; s += kChain<K>) {
    chain<K, R, P>(kChain<K>, a + s, w + s * kStepBytes<K>, panel_stride, [&](int r, int v, __m256 acc) {
      _mm256_store_ps(sum + (r * 2 * P + v) * 8, add(r, v, acc));
    });
    DUET_KEEP_IN_MEMORY(sum);
  }
  chain<K, R, P>(steps - s, a + s, w + s * kStepBytes<K>, panel_stride,
                 [&](int r, int v, __m256 acc) { finish(r, v, add(r, v, acc)); });
}

template <Kind K, int R, int P>
void tile(int64_t steps, const float* a, const std::byte* w, int64_t panel_stride, float* c, int64_t ldc,
          bool load_c) {
  sum_chains<K, R, P>(steps, a, w, panel_stride, [&](int r, int v, __m256 total) {
    float* to = c + r * ldc + v * 8;
    _mm256_storeu_ps(to, load_c ? _mm256_add_ps(_mm256_loadu_ps(to), total) : total);
  });
}

template <int R, int P>
void scaled_tile(int64_t steps, const float* a, const std::byte* w, int64_t panel_stride,
                 const ScaledSums& to) {
  alignas(64) float scale[P * 16];  // the sums need the registers
  DUET_UNROLL
  for (int v = 0; v < 2 * P; ++v) {
    const auto* scales = reinterpret_cast<const float*>(to.scales + v / 2 * to.panel_stride) + v % 2 * 8;
    _mm256_store_ps(scale + v * 8, _mm256_mul_ps(_mm256_loadu_ps(scales), _mm256_set1_ps(to.power)));
  }
  DUET_KEEP_IN_MEMORY(scale);
  sum_chains<Kind::kWidened, R, P>(steps, a, w, panel_stride, [&](int r, int v, __m256 total) {
    float* c = to.c + r * to.ldc + v * 8;
    const __m256 by = _mm256_load_ps(scale + v * 8);
    _mm256_storeu_ps(c,
                     to.load_c ? _mm256_fmadd_ps(total, by, _mm256_loadu_ps(c)) : _mm256_mul_ps(total, by));
  });
}

// ---- many rows ------------------------------------------------------------------------------------

template <Kind K>
void widen(int64_t steps, const std::byte* w, float* out) {
  if constexpr (K == Kind::kBf16) {
    for (int64_t s = 0; s < steps; s += 2, w += 64, out += 32) {
      DUET_UNROLL
      for (int v = 0; v < 2; ++v) {
        const __m256i pairs = load(w + v * 32), high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
        _mm256_store_ps(out + v * 8, _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)));
        _mm256_store_ps(out + 16 + v * 8, _mm256_castsi256_ps(_mm256_and_si256(pairs, high)));
      }
    }
  } else {
    for (int64_t i = 0; i < 2 * steps; ++i, w += 16, out += 8)
      _mm256_store_ps(out, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w))));
  }
}

template <Kind K>
constexpr TileFn kTall[6] = {tile<K, 1, 1>, tile<K, 2, 1>, tile<K, 3, 1>,
                             tile<K, 4, 1>, tile<K, 5, 1>, tile<K, 6, 1>};

/// One panel, of narrow weights widened once, and at most kBlockSteps.
template <Kind K>
void tall(int64_t rows, int64_t steps, const float* a, const std::byte* w, int64_t, float* c, int64_t ldc,
          bool load_c, const std::byte* next) {
  alignas(64) float wide[K == Kind::kF32 ? 16 : (kBlockSteps + 1) * 16];
  if constexpr (K != Kind::kF32) {
    widen<K>(steps, w, wide);
    w = reinterpret_cast<const std::byte*>(wide);
  }
  const int64_t strips = (rows + 5) / 6;
  const int64_t lines = next ? steps * kStepBytes<K> / 64 : 0;  // a part with each strip
  for (int64_t i = 0; i < strips; ++i) {
    const int64_t row = i * rows / strips, height = (i + 1) * rows / strips - row;
    for (int64_t l = i * lines / strips; l < (i + 1) * lines / strips; ++l)
      __builtin_prefetch(next + l * 64, 0, 2);
    constexpr Kind kTile = K == Kind::kF32 ? Kind::kNear : Kind::kWidened;
    kTall<kTile>[height - 1](steps, a + row * kRowWords, w, 0, c + row * ldc, ldc, load_c);
  }
}

template <Kind K>
constexpr TileSet tiles() {
  TileSet set = {6,
                 false,
                 {{tile<K, 1, 1>, tile<K, 1, 2>, tile<K, 1, 4>},
                  {tile<K, 2, 1>, tile<K, 2, 2>, nullptr},
                  {tile<K, 3, 1>, tile<K, 3, 2>, nullptr},
                  {tile<K, 4, 1>, nullptr, nullptr},
                  {tile<K, 5, 1>, nullptr, nullptr},
                  {tile<K, 6, 1>, nullptr, nullptr}}};
  if constexpr (K != Kind::kWidened) {
    set.tall = tall<K>;
    set.tall_panels = 1;
    set.tall_rows = 24;
  }
  return set;
}

__m256 to_bf16_and_back(__m256 v) {
  const __m256i u = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  const __m256 bits = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), nan);
  return _mm256_and_ps(bits, _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}

__m256 to_f16_and_back(__m256 v) {
  return _mm256_cvtph_ps(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

void round_row(Rounding rounding, const float* in, int64_t count, float* out) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (int64_t i = 0; i < count; i += 8) {
    const int left = count - i >= 8 ? 8 : static_cast<int>(count - i);
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(left), lane);
    __m256 v = _mm256_maskload_ps(in + i, mask);
    if (rounding == Rounding::kBf16) v = to_bf16_and_back(v);
    if (rounding == Rounding::kF16) v = to_f16_and_back(v);
    if (left == 8) {
      _mm256_storeu_ps(out + i, v);
    } else {
      _mm256_maskstore_ps(out + i, mask, v);
    }
  }
}

constexpr GemmKernels kKernels = {tiles<Kind::kF32>(), tiles<Kind::kBf16>(), tiles<Kind::kF16>(), round_row};

}  // namespace

const ScaledTileFn kScaledTilesAvx2[6][2] = {
    {scaled_tile<1, 1>, scaled_tile<1, 2>}, {scaled_tile<2, 1>, scaled_tile<2, 2>},
    {scaled_tile<3, 1>, scaled_tile<3, 2>}, {scaled_tile<4, 1>, nullptr},
    {scaled_tile<5, 1>, nullptr},           {scaled_tile<6, 1>, nullptr}};

const TileSet* widened_tiles_avx2() {
  static constexpr TileSet kTiles = tiles<Kind::kWidened>();
  return &kTiles;
}

const GemmKernels* gemm_kernels_avx2() {
  return &kKernels;
}

}  // namespace duet::gemm_detail
