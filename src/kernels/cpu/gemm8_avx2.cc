#include <immintrin.h>

#include "kernels/cpu/gemm_kernels.h"

// 8-bit weights, see gemm8_avx512.cc; a quad is two registers of 8 columns. Without VNNI, up to three rows of
// int8 · int8 go by vpmaddubsw: |w| times a with w's sign. Two such products are at most 2 · 128 · 127 =
// 32512, which 16 bits hold (activations are never -128), so it is exact. More rows: gemm16_avx2.cc.

namespace duet::gemm_detail {
namespace {

constexpr int64_t kAhead = 1024;
// Weights are multiplied as 2^-120 of themselves, which takes no instruction. Inputs of 2^64 times their
// value keep products and sums far from either end of float32 (they may be up to 2^63 themselves); scales
// bring the rest.
constexpr float kInputPower = 0x1p64f, kOutputPower = 0x1p56f;

[[gnu::always_inline]] inline __m256i load(const std::byte* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

/// k 0 and 1 (kSecond: 2 and 3) of quads of eight columns, as float32 of 2^-120 times the value: four bits to
/// the right, a byte is the upper half of that. Pairs of k 0 and 1 lie before those of 2 and 3.
struct TwoSteps {
  __m256 even, odd;
};
template <bool kSecond>
[[gnu::always_inline]] inline TwoSteps widen_steps(__m256i quads) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i bytes = kSecond ? _mm256_unpackhi_epi8(zero, quads) : _mm256_unpacklo_epi8(zero, quads);
  // A product for the shift, because the two units that shift are busy with the other instructions here.
  const __m256i shifted = _mm256_mulhi_epi16(bytes, _mm256_set1_epi16(1 << 12));
  const __m256i halves = _mm256_and_si256(shifted, _mm256_set1_epi16(static_cast<int16_t>(0x87f0)));
  const __m256i odd = _mm256_and_si256(halves, _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(halves, 16)), _mm256_castsi256_ps(odd)};
}

/// kFirst: begins chains, with products (see gemm_avx2.cc).
template <bool kFirst, bool kSecond, int R, int V>
[[gnu::always_inline]] inline void multiply_steps(__m256 (&acc)[R][V], const std::byte* quads,
                                                  int64_t panel_stride, const float* a) {
  // One register of weights at a time: there are none for all of them besides the sums.
  DUET_UNROLL
  for (int v = 0; v < V; ++v) {
    const TwoSteps w = widen_steps<kSecond>(load(quads + v / 2 * panel_stride + v % 2 * 32));
    DUET_UNROLL
    for (int r = 0; r < R; ++r) {
      const float* x = a + r * kRowWords + (kSecond ? 2 : 0);
      const __m256 even = _mm256_broadcast_ss(x);
      acc[r][v] = kFirst ? _mm256_mul_ps(even, w.even) : _mm256_fmadd_ps(even, w.even, acc[r][v]);
      acc[r][v] = _mm256_fmadd_ps(_mm256_broadcast_ss(x + 1), w.odd, acc[r][v]);
    }
  }
}

template <bool kFirst, int R, int P>
[[gnu::always_inline]] inline void multiply_quad(__m256 (&acc)[R][2 * P], const std::byte* quads,
                                                 int64_t panel_stride, const float* a) {
  DUET_UNROLL
  for (int p = 0; p < P; ++p)
    _mm_prefetch(reinterpret_cast<const char*>(quads + p * panel_stride + kAhead), _MM_HINT_T0);
  multiply_steps<kFirst, false>(acc, quads, panel_stride, a);
  multiply_steps<false, true>(acc, quads, panel_stride, a);
}

/// Bare sums, in the chains of widened_tiles_avx2().
template <int R, int P>
void tile(int64_t steps, const float* a, const std::byte* w, int64_t panel_stride, float* c, int64_t ldc,
          bool load_c) {
  alignas(64) float sum[R * P * 16];
  int64_t s = 0;
  do {
    const int64_t end = steps - s < kSumStepsNarrow ? steps : s + kSumStepsNarrow;
    __m256 acc[R][2 * P];
    multiply_quad<true, R, P>(acc, w + s * 16, panel_stride, a + s);
    for (int64_t k = s + 4; k < end; k += 4) multiply_quad<false, R, P>(acc, w + k * 16, panel_stride, a + k);
    DUET_UNROLL
    for (int r = 0; r < R; ++r) {
      DUET_UNROLL
      for (int v = 0; v < 2 * P; ++v) {
        float* to = sum + (r * 2 * P + v) * 8;
        const __m256 so_far = s == 0 ? _mm256_setzero_ps() : _mm256_load_ps(to);
        _mm256_store_ps(to, _mm256_add_ps(so_far, acc[r][v]));
      }
    }
    DUET_KEEP_IN_MEMORY(sum);
    s = end;
  } while (s < steps);
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 2 * P; ++v) {
      float* to = c + r * ldc + v * 8;
      const __m256 total = _mm256_load_ps(sum + (r * 2 * P + v) * 8);
      _mm256_storeu_ps(to, load_c ? _mm256_add_ps(_mm256_loadu_ps(to), total) : total);
    }
  }
}

constexpr TileSet tiles() {
  return {6,
          false,
          {{tile<1, 1>, tile<1, 2>, tile<1, 4>},
           {tile<2, 1>, tile<2, 2>, nullptr},
           {tile<3, 1>, tile<3, 2>, nullptr},
           {tile<4, 1>, nullptr, nullptr},
           {tile<5, 1>, nullptr, nullptr},
           {tile<6, 1>, nullptr, nullptr}}};
}

void widen(int64_t quads, const std::byte* w, std::byte* out) {
  for (int64_t q = 0; q < quads; ++q, w += 64, out += 256) {
    auto* to = reinterpret_cast<float*>(out);
    for (int half = 0; half < 2; ++half, to += 8) {
      const __m256i quad = load(w + half * 32);
      const TwoSteps first = widen_steps<false>(quad), second = widen_steps<true>(quad);
      _mm256_storeu_ps(to, first.even);
      _mm256_storeu_ps(to + 16, first.odd);
      _mm256_storeu_ps(to + 32, second.even);
      _mm256_storeu_ps(to + 48, second.odd);
    }
  }
}

void add_scaled(const ScaledSums& s) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (int64_t at = 0; at < s.columns; at += 8) {
    const int64_t left = s.columns - at;
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(left >= 8 ? 8 : static_cast<int>(left)), lane);
    const auto* scales = reinterpret_cast<const float*>(s.scales + at / 16 * s.panel_stride);
    const __m256 scale = _mm256_mul_ps(_mm256_loadu_ps(scales + at % 16), _mm256_set1_ps(s.power));
    const float* sums = s.sums + at;
    float* c = s.c + at;
    for (int r = 0; r < s.rows; ++r, sums += s.panels * 16, c += s.ldc) {
      const __m256 sum = _mm256_loadu_ps(sums);
      if (left >= 8) {
        const __m256 to =
            s.load_c ? _mm256_fmadd_ps(sum, scale, _mm256_loadu_ps(c)) : _mm256_mul_ps(sum, scale);
        _mm256_storeu_ps(c, to);
      } else {
        const __m256 to =
            s.load_c ? _mm256_fmadd_ps(sum, scale, _mm256_maskload_ps(c, mask)) : _mm256_mul_ps(sum, scale);
        _mm256_maskstore_ps(c, mask, to);
      }
    }
  }
}

// ---- int8 · int8 --------------------------------------------------------------------------------

template <int R, int P>
void int8_tile(int64_t quads, const std::byte* a, int64_t a_stride, int64_t scale_at, const std::byte* w,
               int64_t panel_stride, float* c, int64_t ldc, bool load_c, const std::byte* ahead) {
  __m256i acc[R][2 * P];
  DUET_UNROLL
  for (int r = 0; r < R; ++r) {
    DUET_UNROLL
    for (int v = 0; v < 2 * P; ++v) acc[r][v] = _mm256_setzero_si256();
  }
  const __m256i ones = _mm256_set1_epi16(1);
  const std::byte* from = w + 128;
  for (int64_t q = 0; q < quads; ++q, from += 64, ahead += 64) {
    DUET_UNROLL
    for (int v = 0; v < 2 * P; ++v) {
      const std::byte* at = from + v / 2 * panel_stride + v % 2 * 32;
      if (v % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(ahead + v / 2 * panel_stride), _MM_HINT_T0);
      const __m256i quad = load(at);
      const __m256i size = _mm256_abs_epi8(quad);
      DUET_UNROLL
      for (int r = 0; r < R; ++r) {
        const __m256i x = _mm256_set1_epi32(*reinterpret_cast<const int*>(a + r * a_stride + q * 4));
        const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(x, quad));
        acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(pairs, ones));
      }
    }
  }
  // Unrolled as well: an index that is not a constant would move the sums to memory for good.
  DUET_UNROLL
  for (int r = 0; r < R; ++r) {
    const __m256 row_scale = _mm256_broadcast_ss(reinterpret_cast<const float*>(a + r * a_stride + scale_at));
    DUET_UNROLL
    for (int v = 0; v < 2 * P; ++v) {
      const auto* scales = reinterpret_cast<const float*>(w + v / 2 * panel_stride) + v % 2 * 8;
      const __m256 sum = _mm256_cvtepi32_ps(acc[r][v]);
      const __m256 result = _mm256_mul_ps(_mm256_mul_ps(sum, row_scale), _mm256_loadu_ps(scales));
      float* to = c + r * ldc + v * 8;
      _mm256_storeu_ps(to, load_c ? _mm256_add_ps(_mm256_loadu_ps(to), result) : result);
    }
  }
}

/// A row of floats, zeros behind its end, and its largest magnitude.
struct FloatRow {
  const float* in;
  int64_t count;

  __m256 at(int64_t i) const {
    const int64_t left = count - i;
    if (left >= 8) return _mm256_loadu_ps(in + i);
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(left < 0 ? 0 : static_cast<int>(left)), lane);
    return _mm256_maskload_ps(in + i, mask);
  }
  float largest() const {
    // As integers, magnitudes keep their order, and NaN is the largest.
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i most = _mm256_setzero_si256();
    for (int64_t i = 0; i < count; i += 8) {
      most = _mm256_max_epu32(most, _mm256_and_si256(_mm256_castps_si256(at(i)), magnitude));
    }
    alignas(32) uint32_t each[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(each), most);
    uint32_t top = 0;
    for (const uint32_t v : each) top = v > top ? v : top;
    return __builtin_bit_cast(float, top);
  }
};

void store_bytes(const __m256i (&values)[4], std::byte* out) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i words =
      _mm256_packs_epi16(_mm256_packs_epi32(values[0], values[1]), _mm256_packs_epi32(values[2], values[3]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permutevar8x32_epi32(words, order));
}

/// Four values in the order 0 2 1 3, each time, as gemm16_avx2.cc takes them.
__m256i in_pairs(__m256i values) {
  constexpr int kOrder = 0b11'01'10'00;
  return _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(values, kOrder), kOrder);
}

void quantise_row(const float* in, int64_t count, std::byte* out) {
  const FloatRow row{in, count};
  const RowScale s = row_scale(row.largest(), 127);
  const __m256 inverse = _mm256_set1_ps(s.inverse);
  const int64_t padded = (count + 63) / 64 * 64;
  for (int64_t i = 0; i < padded; i += 32) {
    __m256i q[4];
    for (int j = 0; j < 4; ++j) q[j] = _mm256_cvtps_epi32(_mm256_mul_ps(row.at(i + 8 * j), inverse));
    store_bytes(q, out + i);
  }
  *reinterpret_cast<float*>(out + padded) = s.scale;
  auto* wide = reinterpret_cast<__m256i*>(out + padded + 64);
  for (int64_t i = 0; i < padded; i += 16) {
    const auto* bytes = reinterpret_cast<const __m128i*>(out + i);
    _mm256_storeu_si256(wide++, in_pairs(_mm256_cvtepi8_epi16(_mm_loadu_si128(bytes))));
  }
}

}  // namespace

const WeightOnlyKernels* weight_only_avx2() {
  static const WeightOnlyKernels kernels = {tiles(), widened_tiles_avx2(), widen,        add_scaled,
                                            256,     kInputPower,          kOutputPower, kScaledTilesAvx2};
  return &kernels;
}

void round_to_16_bits_avx2(const float* in, int64_t count, std::byte* out) {
  const FloatRow row{in, count};
  const RowScale s = row_scale(row.largest(), kInt16Most);
  const __m256 inverse = _mm256_set1_ps(s.inverse);
  const int64_t padded = (count + 63) / 64 * 64;
  auto* to = reinterpret_cast<__m256i*>(out);
  for (int64_t i = 0; i < padded; i += 16) {
    const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(row.at(i), inverse));
    const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(row.at(i + 8), inverse));
    _mm256_storeu_si256(to++, in_pairs(_mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0b11011000)));
  }
  *reinterpret_cast<float*>(to) = s.scale;
}

const Int8Kernels* int8_kernels_avx2() {
  static const Int8Kernels kernels = {6,
                                      {{int8_tile<1, 1>, int8_tile<1, 2>, int8_tile<1, 4>},
                                       {int8_tile<2, 1>, int8_tile<2, 2>, nullptr},
                                       {int8_tile<3, 1>, nullptr, nullptr},
                                       {kInt8TilesFrom4Avx2[0], nullptr, nullptr},
                                       {kInt8TilesFrom4Avx2[1], nullptr, nullptr},
                                       {kInt8TilesFrom4Avx2[2], nullptr, nullptr}},
                                      quantise_row,
                                      nullptr,
                                      nullptr,
                                      int8_tall_avx2,
                                      1,
                                      24,
                                      1,
                                      2};
  return &kernels;
}

}  // namespace duet::gemm_detail
