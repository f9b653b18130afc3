#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/gemm_kernels.h"

// int8 weights times rows of 16 bits with AVX2: vpmaddwd multiplies two k of eight columns. Four and more
// rows of int8 go this way too (quantise_row wrote them in 16 bits as well). vpmaddubsw takes twice as many
// k, but weights without a sign, and what goes before and after it (vpsignb, vpmaddwd) shares its two
// units: 1.5 cycles for 32 products in place of 1. For fewer rows, widening the weights would cost more than
// that saves.

namespace duet::gemm_detail {
namespace {

/// Inputs of int8: sums are exact in 32 bits. Of int16: for 512 k (2 · 10^9), and these go on as floats.
enum class Kind { kInt8, kInt16 };

constexpr int kRows = 6;            // 12 sums, two registers of weights, one of a row
constexpr int64_t kMostRows = 192;  // whose sums are kept from one chunk of k to the next
/// Quads of a chunk of k. The same for every number of rows, because sums of kInt16 are rounded after each.
constexpr int64_t kChunk = 128;

/// Where a row has its values as int16.
template <Kind K>
constexpr int64_t values_at(int64_t scale_at) {
  return K == Kind::kInt8 ? scale_at + 64 : 0;
}

[[gnu::always_inline]] inline __m256i load(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

/// Of quads of eight columns, k 0 and 2 (kOdd: 1 and 3) as pairs of int16: the lower byte goes up, and a
/// shift brings it down with its sign. Rows have their quads in the order 0 2 1 3 for it.
template <bool kOdd>
[[gnu::always_inline]] inline __m256i pairs_of(__m256i quads) {
  return _mm256_srai_epi16(kOdd ? quads : _mm256_slli_epi16(quads, 8), 8);
}

/// Two values of a row for all columns.
[[gnu::always_inline]] inline __m256i two_of(const std::byte* a) {
  int pair;
  std::memcpy(&pair, a, sizeof pair);
  return _mm256_set1_epi32(pair);
}

[[gnu::always_inline]] inline __m256i add_products(__m256i sum, __m256i x, __m256i w) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
}

/// c (+)= (sum · scale of the row) · scales, eight columns.
[[gnu::always_inline]] inline void store_scaled(__m256 sum, const std::byte* row_scale, const float* scales,
                                                float* c, bool load_c) {
  const __m256 row = _mm256_broadcast_ss(reinterpret_cast<const float*>(row_scale));
  const __m256 scaled = _mm256_mul_ps(_mm256_mul_ps(sum, row), _mm256_loadu_ps(scales));
  _mm256_storeu_ps(c, load_c ? _mm256_add_ps(_mm256_loadu_ps(c), scaled) : scaled);
}

// ---- few rows: widened in registers ----------------------------------------------------------------

/// Half of a quad of two registers of columns.
template <bool kOdd, int R>
[[gnu::always_inline]] inline void multiply_pairs(__m256i (*acc)[2], const __m256i (&quads)[2],
                                                  const std::byte* a, int64_t a_stride) {
  const __m256i w0 = pairs_of<kOdd>(quads[0]), w1 = pairs_of<kOdd>(quads[1]);
  DUET_UNROLL
  for (int r = 0; r < R; ++r) {
    const __m256i x = two_of(a + r * a_stride + (kOdd ? 4 : 0));
    acc[r][0] = add_products(acc[r][0], x, w0);
    acc[r][1] = add_products(acc[r][1], x, w1);
    // One after the other: else the compiler reads all rows first and keeps sums in memory.
    asm volatile("" : "+x"(acc[r][0]), "+x"(acc[r][1]));
  }
}

template <Kind K, int R, int P>
void few(int64_t quads, const std::byte* a, int64_t a_stride, int64_t scale_at, const std::byte* w,
         int64_t panel_stride, float* c, int64_t ldc, bool load_c, const std::byte* ahead) {
  alignas(64) float sums[R * P * 16];
  const std::byte* from = w + 128;
  const std::byte* values = a + values_at<K>(scale_at);
  __m256i acc[P][R][2];
  int64_t q = 0;
  do {
    const bool first = q == 0;
    const int64_t end = K == Kind::kInt8 || quads - q < kChunk ? quads : q + kChunk;
    DUET_UNROLL
    for (int p = 0; p < P; ++p) {
      DUET_UNROLL
      for (int r = 0; r < R; ++r) acc[p][r][0] = acc[p][r][1] = _mm256_setzero_si256();
    }
    for (; q < end; ++q, from += 64, ahead += 64) {
      DUET_UNROLL
      for (int p = 0; p < P; ++p) {
        _mm_prefetch(reinterpret_cast<const char*>(ahead + p * panel_stride), _MM_HINT_T0);
        const std::byte* at = from + p * panel_stride;
        const __m256i two[2] = {load(at), load(at + 32)};
        multiply_pairs<false, R>(acc[p], two, values + q * 8, a_stride);
        multiply_pairs<true, R>(acc[p], two, values + q * 8, a_stride);
      }
    }
    if (K == Kind::kInt8) break;
    DUET_UNROLL
    for (int i = 0; i < R * P * 2; ++i) {
      float* to = sums + i * 8;
      const __m256 sum = _mm256_cvtepi32_ps(acc[i / (2 * R)][i / 2 % R][i % 2]);
      _mm256_store_ps(to, first ? sum : _mm256_add_ps(_mm256_load_ps(to), sum));
    }
    DUET_KEEP_IN_MEMORY(sums);
  } while (q < quads);
  DUET_UNROLL
  for (int i = 0; i < R * P * 2; ++i) {
    const int p = i / (2 * R), r = i / 2 % R, v = i % 2;
    const auto* scales = reinterpret_cast<const float*>(w + p * panel_stride) + v * 8;
    const __m256 sum = K == Kind::kInt8 ? _mm256_cvtepi32_ps(acc[p][r][v]) : _mm256_load_ps(sums + i * 8);
    store_scaled(sum, a + r * a_stride + scale_at, scales, c + r * ldc + p * 16 + v * 8, load_c);
  }
}

// ---- many rows: a panel is widened once -----------------------------------------------------------

/// Quads of a panel ([16 columns][4 k] bytes) → pairs [2][16 columns][2 k] of int16, k 0 and 2 first.
void widen(int64_t quads, const std::byte* w, __m256i* out) {
  for (int64_t q = 0; q < quads; ++q, w += 64, out += 4) {
    const __m256i low = load(w), high = load(w + 32);
    _mm256_store_si256(out, pairs_of<false>(low));
    _mm256_store_si256(out + 1, pairs_of<false>(high));
    _mm256_store_si256(out + 2, pairs_of<true>(low));
    _mm256_store_si256(out + 3, pairs_of<true>(high));
  }
}

/// What a chunk of k does with the sums [R][16] so far, int32 or float, and where they go after the last one.
struct Sums {
  void* kept;
  bool resume;  // int32: begin with them. A constant for int16, but known as one it costs moves in the loop
  bool first, last;            // chunk
  const std::byte* row_scale;  // of row r: a_stride · r further
  const float* scales;
  float* c;
  int64_t ldc;
  bool load_c;
};

template <Kind K, int R>
void tile(int64_t pairs, const std::byte* a, int64_t a_stride, const __m256i* w, const Sums& sums) {
  __m256i acc[R][2];
  auto* kept = static_cast<__m256i*>(sums.kept);
  DUET_UNROLL
  for (int r = 0; r < R; ++r) {
    acc[r][0] = sums.resume ? _mm256_load_si256(kept + 2 * r) : _mm256_setzero_si256();
    acc[r][1] = sums.resume ? _mm256_load_si256(kept + 2 * r + 1) : _mm256_setzero_si256();
  }
#pragma GCC unroll 2
  for (int64_t i = 0; i < pairs; ++i, a += 4, w += 2) {
    const __m256i w0 = _mm256_load_si256(w), w1 = _mm256_load_si256(w + 1);
    DUET_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m256i x = two_of(a + r * a_stride);
      acc[r][0] = add_products(acc[r][0], x, w0);
      acc[r][1] = add_products(acc[r][1], x, w1);
    }
  }
  auto* kept_floats = static_cast<float*>(sums.kept);
  DUET_UNROLL
  for (int r = 0; r < R; ++r) {
    DUET_UNROLL
    for (int v = 0; v < 2; ++v) {
      if (K == Kind::kInt8 && !sums.last) {
        _mm256_store_si256(kept + 2 * r + v, acc[r][v]);
        continue;
      }
      __m256 sum = _mm256_cvtepi32_ps(acc[r][v]);
      float* so_far = kept_floats + r * 16 + v * 8;
      if (K == Kind::kInt16 && !sums.first) sum = _mm256_add_ps(_mm256_load_ps(so_far), sum);
      if (sums.last) {
        store_scaled(sum, sums.row_scale + r * a_stride, sums.scales + v * 8, sums.c + r * sums.ldc + v * 8,
                     sums.load_c);
      } else {
        _mm256_store_ps(so_far, sum);
      }
    }
  }
}

using StripFn = void (*)(int64_t, const std::byte*, int64_t, const __m256i*, const Sums&);
template <Kind K>
constexpr StripFn kTiles[kRows] = {tile<K, 1>, tile<K, 2>, tile<K, 3>, tile<K, 4>, tile<K, 5>, tile<K, 6>};

/// At most kMostRows rows and one panel.
template <Kind K>
void some_rows(int64_t rows, int64_t quads, const std::byte* a, int64_t a_stride, int64_t scale_at,
               const std::byte* w, float* c, int64_t ldc, bool load_c, const std::byte* next) {
  alignas(64) __m256i wide[kChunk * 4];  // 16 KiB
  alignas(64) int32_t kept[kMostRows * 16];
  const auto* scales = reinterpret_cast<const float*>(w);
  const int64_t strips = (rows + kRows - 1) / kRows;
  const int64_t lines = next ? quads + 2 : 0;  // of the next panel, a part fetched with each strip
  for (int64_t q = 0; q < quads; q += kChunk) {
    const int64_t count = quads - q < kChunk ? quads - q : kChunk;
    const bool last = q + count == quads;
    widen(count, w + 128 + q * 64, wide);
    for (int64_t strip = 0; strip < strips; ++strip) {
      const int64_t row = strip * rows / strips, height = (strip + 1) * rows / strips - row;
      for (int64_t l = strip * lines / strips; last && l < (strip + 1) * lines / strips; ++l)
        __builtin_prefetch(next + l * 64, 0, 2);
      const std::byte* of_rows = a + row * a_stride;
      kTiles<K>[height - 1](2 * count, of_rows + values_at<K>(scale_at) + q * 8, a_stride, wide,
                            {kept + row * 16, K == Kind::kInt8 && q > 0, q == 0, last, of_rows + scale_at,
                             scales, c + row * ldc, ldc, load_c});
    }
  }
}

template <Kind K>
void tall(int64_t rows, int64_t quads, const std::byte* a, int64_t a_stride, int64_t scale_at,
          const std::byte* w, int64_t, float* c, int64_t ldc, bool load_c, const std::byte* next) {
  for (int64_t row = 0; row < rows; row += kMostRows) {
    const int64_t count = rows - row < kMostRows ? rows - row : kMostRows;
    some_rows<K>(count, quads, a + row * a_stride, a_stride, scale_at, w, c + row * ldc, ldc, load_c, next);
  }
}

template <int R, int P>
constexpr Int8TileFn kFew = few<Kind::kInt16, R, P>;
constexpr Int8Kernels kInt16 = {kRows,
                                {{kFew<1, 1>, kFew<1, 2>, kFew<1, 4>},
                                 {kFew<2, 1>, kFew<2, 2>, nullptr},
                                 {kFew<3, 1>, kFew<3, 2>, nullptr},
                                 {kFew<4, 1>, nullptr, nullptr},
                                 {kFew<5, 1>, nullptr, nullptr},
                                 {kFew<6, 1>, nullptr, nullptr}},
                                round_to_16_bits_avx2,
                                nullptr,
                                nullptr,
                                tall<Kind::kInt16>,
                                1,
                                24,
                                2,
                                0};

}  // namespace

const Int8TileFn kInt8TilesFrom4Avx2[3] = {few<Kind::kInt8, 4, 1>, few<Kind::kInt8, 5, 1>,
                                           few<Kind::kInt8, 6, 1>};

void int8_tall_avx2(int64_t rows, int64_t quads, const std::byte* a, int64_t a_stride, int64_t scale_at,
                    const std::byte* w, int64_t panel_stride, float* c, int64_t ldc, bool load_c,
                    const std::byte* next) {
  tall<Kind::kInt8>(rows, quads, a, a_stride, scale_at, w, panel_stride, c, ldc, load_c, next);
}

const Int8Kernels* int16_kernels_avx2() {
  return &kInt16;
}

}  // namespace duet::gemm_detail
