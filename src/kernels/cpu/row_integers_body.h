// The bodies of RowKernels that work on integers, for the int8 latent cache. Included by row_kernels*.cc
// after row_kernels_body.h, on the same terms.
#pragma once

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/row_strips.h"

namespace duet {
namespace {

typedef int16_t HalfInts __attribute__((vector_size(DUET_PART_BYTES / 2)));
typedef int8_t QuarterInts __attribute__((vector_size(DUET_PART_BYTES / 4)));

/// 16 integers, each the sum of products so far.
struct IntLanes {
  IntPart part[kParts];
};

DUET_LANE IntLanes no_sum() {
  return {};
}

/// sum[l] += x[0] · w[2 l] + x[1] · w[2 l + 1].
DUET_LANE void add_pairs(IntLanes& sum, const int16_t* x, const int16_t* w) {
#if defined(__AVX2__)
  int pair;
  __builtin_memcpy(&pair, x, sizeof(pair));
#if defined(__AVX512F__)
  const __m512i weights = _mm512_loadu_si512(w);
  sum.part[0] = (IntPart)_mm512_dpwssd_epi32((__m512i)sum.part[0], _mm512_set1_epi32(pair), weights);
#else
  const __m256i both = _mm256_set1_epi32(pair);
  for (int p = 0; p < kParts; ++p) {
    const __m256i weights =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + static_cast<int64_t>(p) * 2 * kPartLanes));
    sum.part[p] = (IntPart)_mm256_add_epi32((__m256i)sum.part[p], _mm256_madd_epi16(both, weights));
  }
#endif
#else
  const int32_t first = x[0], second = x[1];
  for (int p = 0; p < kParts; ++p) {
    for (int l = 0; l < kPartLanes; ++l, w += 2) sum.part[p][l] += first * w[0] + second * w[1];
  }
#endif
}

DUET_LANE Lanes floats_of(const IntLanes& v) {
  Lanes r;
  for (int p = 0; p < kParts; ++p) r.part[p] = __builtin_convertvector(v.part[p], FloatPart);
  return r;
}

constexpr int64_t kPairsPerTurn = 8;  // between requests for memory

struct IntTile {
  template <int R>
  static void run(const IntProduct& t, int64_t row, int64_t line, int64_t lines) {
    const int16_t* a = t.a + row * t.a_stride;
    const int16_t* w = t.w;
    IntLanes sum[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r] = no_sum();
    for (int64_t pair = 0; pair < t.pairs;) {
      const int64_t end = t.pairs - pair < kPairsPerTurn ? t.pairs : pair + kPairsPerTurn;
      for (; pair < end; ++pair, a += 2, w += 2 * kLanes) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) add_pairs(sum[r], a + r * t.a_stride, w);
      }
      bring(t.ahead, line, line + lines);
      line += lines;
    }
    const Lanes columns = load(t.column_scales);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      float* c = t.c + (row + r) * t.ldc;
      const Lanes v = floats_of(sum[r]) * splat(t.row_scales[row + r]) * columns;
      store(t.load_c ? load(c) + v : v, c);
    }
  }
};

void multiply_i16(const IntProduct& t) {
  run_strips<IntTile>(t, (t.pairs + kPairsPerTurn - 1) / kPairsPerTurn);
}

constexpr float kMagic = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer, in the low bits

/// The integers of values + kMagic.
DUET_LANE void store_rounded_i16(const Lanes& v, int16_t* out) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  // Without what lies above the integer, or both halves would be taken apart.
  const __m256i magic = _mm256_castps_si256(_mm256_set1_ps(kMagic));
  const __m256i low = _mm256_sub_epi32((__m256i)v.part[0], magic);
  const __m256i high = _mm256_sub_epi32((__m256i)v.part[1], magic);
  const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), both);
#else
  for (int p = 0; p < kParts; ++p) {
    const HalfInts half = __builtin_convertvector((IntPart)v.part[p], HalfInts);
    __builtin_memcpy(out + static_cast<int64_t>(p) * kPartLanes, &half, sizeof(half));
  }
#endif
}

template <bool kFactored>
DUET_LANE float to_i16_of(const float* x, const float* factors, int64_t n, int most, int16_t* out) {
  const int64_t whole = n - n % kLanes;
  const auto all = [&](int64_t i) { return kFactored ? load(x + i) * load(factors + i) : load(x + i); };
  const auto rest = [&] {
    const Lanes v = load_some(x + whole, n - whole, 0.0f);
    return kFactored ? v * load_some(factors + whole, n - whole, 0.0f) : v;
  };
  // As integers, magnitudes keep their order, and NaN is the largest.
  WordPart peak[kParts] = {};
  const auto see = [&](const Lanes& v) {
    for (int p = 0; p < kParts; ++p) {
      const WordPart magnitude = (WordPart)v.part[p] & 0x7fffffffu;
      peak[p] = magnitude > peak[p] ? magnitude : peak[p];
    }
  };
  for (int64_t i = 0; i < whole; i += kLanes) see(all(i));
  if (whole < n) see(rest());
  uint32_t lane[kLanes], top = 0;
  __builtin_memcpy(lane, peak, sizeof(lane));
  for (uint32_t l : lane) top = l > top ? l : top;
  float largest;
  __builtin_memcpy(&largest, &top, sizeof(largest));
  const RowScale scale = row_scale(largest, most);
  if (scale.scale == 0.0f) {
    for (int64_t i = 0; i < n; ++i) out[i] = 0;
    return 0.0f;
  }
  const Lanes inverse = splat(scale.inverse), magic = splat(kMagic);
  for (int64_t i = 0; i < whole; i += kLanes) store_rounded_i16(all(i) * inverse + magic, out + i);
  if (whole < n) {
    int16_t rounded[kLanes];
    store_rounded_i16(rest() * inverse + magic, rounded);
    for (int64_t i = whole; i < n; ++i) out[i] = rounded[i - whole];
  }
  return scale.scale;
}

float to_i16(const float* x, const float* factors, int64_t n, int most, int16_t* out) {
  return factors ? to_i16_of<true>(x, factors, n, most, out) : to_i16_of<false>(x, factors, n, most, out);
}

void i8_to_i16(const int8_t* x, int64_t n, int16_t* out) {
  int64_t i = 0;
#if defined(__AVX2__)
  for (; i + 16 <= n; i += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_cvtepi8_epi16(bytes));
  }
#endif
  for (; i < n; ++i) out[i] = x[i];
}

void i8_to_f32(const int8_t* x, float scale, int64_t n, float* out) {
  const FloatPart factor = scale - FloatPart{};
  int64_t i = 0;
  for (; i + kPartLanes <= n; i += kPartLanes) {
    QuarterInts bytes;
    __builtin_memcpy(&bytes, x + i, sizeof(bytes));
    const FloatPart v = __builtin_convertvector(__builtin_convertvector(bytes, IntPart), FloatPart) * factor;
    __builtin_memcpy(out + i, &v, sizeof(v));
  }
  for (; i < n; ++i) out[i] = static_cast<float>(x[i]) * scale;
}

#if defined(__AVX2__)
/// 16 columns of the rows 2 i and 2 i + 1, i < pairs.
DUET_LANE void pack_pairs_i8(const int8_t* rows, int64_t stride, int64_t pairs, int16_t* out) {
  for (int64_t i = 0; i < pairs; ++i, rows += 2 * stride, out += 2 * kLanes) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows));
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + stride));
    auto* to = reinterpret_cast<__m256i*>(out);
    _mm256_storeu_si256(to, _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b)));
    _mm256_storeu_si256(to + 1, _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b)));
  }
}
#endif

void pack_rows_i8(const int8_t* rows, int64_t stride, int64_t k, int64_t columns, int16_t* out) {
  int64_t i = 0;
#if defined(__AVX2__)
  if (columns == kLanes) {
    if (k == kLanes) return pack_pairs_i8(rows, stride, kLanes / 2, out);
    pack_pairs_i8(rows, stride, k / 2, out);
    i = k - k % 2;
  }
#endif
  for (; i < k; i += 2) {
    const int8_t* even = rows + i * stride;
    const bool odd_end = i + 1 == k;
    int16_t* to = out + i * kLanes;
    for (int64_t j = 0; j < kLanes; ++j) {
      to[2 * j] = j < columns ? even[j] : int16_t{0};
      to[2 * j + 1] = j < columns && !odd_end ? even[stride + j] : int16_t{0};
    }
  }
}

}  // namespace
}  // namespace duet
