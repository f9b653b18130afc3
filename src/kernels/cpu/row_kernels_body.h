// The bodies of RowKernels. Included by row_kernels*.cc, each compiled for its own instruction
// set; internal linkage throughout (see lanes.h), and no call into inline code of other headers.
#pragma once

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/row_strips.h"

namespace duet {
namespace {

/// Σ x² in float64, where the products are exact. Element j meets lane j % 32 at every level; 32 chains
/// hide the latency of the addition.
double square_sum(const float* x, int64_t n) {
  constexpr int64_t kStep = 32, kGroups = kStep / kHalfLanes;
  DoublePart acc[kGroups] = {};
  for (int64_t i = 0; i < n; i += kStep) {
    float tail[kStep] = {};
    const float* from = x + i;
    if (n - i < kStep) {
      for (int64_t t = 0; t < n - i; ++t) tail[t] = from[t];
      from = tail;
    }
    for (int64_t g = 0; g < kGroups; ++g) {
      const DoublePart v = load_doubles(from + g * kHalfLanes);
      acc[g] = acc[g] + v * v;
    }
  }
  double s[kStep];
  __builtin_memcpy(s, acc, sizeof(s));
  for (int64_t step = kStep / 2; step > 0; step /= 2) {
    for (int64_t t = 0; t < step; ++t) s[t] += s[t + step];
  }
  return s[0];
}

/// In float64 with one rounding per element: the error of a norm's factor would be common to the whole
/// row and to everything that the row is multiplied with.
void rms_norm_row(const float* x, const float* weight, float eps, int64_t n, float* out) {
  const double mean = square_sum(x, n) / static_cast<double>(n);
  const double factor = 1.0 / __builtin_sqrt(mean + static_cast<double>(eps));
  int64_t i = 0;
  for (; i + kHalfLanes <= n; i += kHalfLanes) {
    store_rounded(load_doubles(x + i) * factor * load_doubles(weight + i), out + i);
  }
  for (; i < n; ++i) {
    out[i] = static_cast<float>(static_cast<double>(x[i]) * factor * static_cast<double>(weight[i]));
  }
}

void rope_row(float* x, const float* cos, const float* sin, int64_t half) {
  for (int64_t j = 0; j < half; ++j) {
    const float a = x[2 * j], b = x[2 * j + 1];
    x[2 * j] = a * cos[j] - b * sin[j];
    x[2 * j + 1] = b * cos[j] + a * sin[j];
  }
}

void rope_halves_row(float* x, const float* cos, const float* sin, int64_t half) {
  float* low = x;
  float* high = x + half;
  int64_t j = 0;
  for (; j + kLanes <= half; j += kLanes) {
    const Lanes a = load(low + j), b = load(high + j), c = load(cos + j), s = load(sin + j);
    store(a * c - b * s, low + j);
    store(b * c + a * s, high + j);
  }
  for (; j < half; ++j) {
    const float a = low[j], b = high[j];
    low[j] = a * cos[j] - b * sin[j];
    high[j] = b * cos[j] + a * sin[j];
  }
}

void add_row(const float* x, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(load(out + i) + load(x + i), out + i);
  for (; i < n; ++i) out[i] += x[i];
}

void scale_row(const float* x, float factor, int64_t n, float* out) {
  const Lanes f = splat(factor), zero = splat(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(load(x + i) * f + zero, out + i);
  for (; i < n; ++i) out[i] = x[i] * factor + 0.0f;
}

void blend_row(const float* x, float b, float a, int64_t n, float* out) {
  const Lanes fa = splat(a), fb = splat(b), zero = splat(0.0f);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store((load(out + i) * fa + load(x + i) * fb) + zero, out + i);
  for (; i < n; ++i) out[i] = (out[i] * a + x[i] * b) + 0.0f;
}

void exp_row(const float* x, float shift, int64_t n, float* out) {
  const Lanes s = splat(shift);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(exp_lanes(load(x + i) - s), out + i);
  if (i < n) store_some(exp_lanes(load_some(x + i, n - i, 0.0f) - s), out + i, n - i);
}

float max_row(const float* x, int64_t n) {
  Lanes m = splat(-__builtin_inff());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) m = larger(m, load(x + i));
  if (i < n) m = larger(m, load_some(x + i, n - i, -__builtin_inff()));
  return lane_max(m);
}

/// A new maximum that exceeds the old one by less is not worth rescaling the output for: nothing in float
/// arithmetic suffers from probabilities of e^4.
constexpr float kLag = 4.0f;

void softmax_tile(const SoftmaxTile& t) {
  const Lanes scale = splat(t.scale);
  for (int64_t row = 0; row < t.rows; ++row) {
    float* s = t.scores + row * t.stride;
    const int64_t seen = t.first_valid + row / t.alike * t.step;
    const int64_t valid = seen < t.keys ? seen : t.keys;
    const int64_t whole = valid / kLanes * kLanes;
    Lanes peak = splat(-__builtin_inff());
    for (int64_t j = 0; j < whole; j += kLanes) {
      const Lanes v = load(s + j) * scale;
      store(v, s + j);
      peak = larger(peak, v);
    }
    if (whole < valid) {
      const Lanes v = first_lanes(load(s + whole) * scale, valid - whole, -__builtin_inff());
      store(v, s + whole);
      peak = larger(peak, v);
    }
    float top = lane_max(peak);
    if (!t.first && t.max[row] > top - kLag) top = t.max[row];
    const Lanes shift = splat(top);
    Lanes total = splat(0.0f);
    for (int64_t j = 0; j < whole; j += kLanes) {
      const Lanes p = exp_lanes(load(s + j) - shift);
      store(p, s + j);
      total = total + p;
    }
    int64_t j = whole;
    if (whole < valid) {
      const Lanes p = first_lanes(exp_lanes(load(s + whole) - shift), valid - whole, 0.0f);
      store(p, s + whole);
      total = total + p;
      j += kLanes;
    }
    for (; j < t.keys; j += kLanes) store(splat(0.0f), s + j);
    const float sum = lane_sum(total);
    if (t.first) {
      t.sum[row] = sum;
      t.correction[row] = 0.0f;
    } else {
      float correction = 1.0f;  // e^0, exactly
      if (!(t.max[row] == top)) {
        float lane[kLanes];
        store(exp_lanes(splat(t.max[row] - top)), lane);
        correction = lane[0];
      }
      t.sum[row] = t.sum[row] * correction + sum;
      t.correction[row] = correction;
    }
    t.max[row] = top;
  }
}

/// acc[r] (+)= a[r][u] · w, where `rows` has a pointer for every three rows, from which the others are one
/// and two strides away: a pointer for each would take registers that are not there.
template <bool kFirst, int R>
DUET_LANE void multiply_step(Lanes (&acc)[R], const float* const (&rows)[(R + 2) / 3], int64_t a_stride,
                             int u, const float* w) {
  const Lanes weights = load(w);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const Lanes x = splat(rows[r / 3][r % 3 * a_stride + u]);
    acc[r] = kFirst ? x * weights : fused(x, weights, acc[r]);
  }
}

template <bool kFirst, int R>
DUET_LANE void multiply_four(Lanes (&acc)[R], const float* const (&rows)[(R + 2) / 3], int64_t a_stride,
                             const float* w, int64_t w_stride) {
  multiply_step<kFirst, R>(acc, rows, a_stride, 0, w);
  multiply_step<false, R>(acc, rows, a_stride, 1, w + w_stride);
  multiply_step<false, R>(acc, rows, a_stride, 2, w + 2 * w_stride);
  multiply_step<false, R>(acc, rows, a_stride, 3, w + 3 * w_stride);
}

/// acc[r] = Σ a[r][i] · w[i] over i < count > 0. The first step multiplies: the bits of a sum from zero, see
/// gemm_avx2.cc for what it saves.
template <int R>
DUET_LANE void multiply_steps(Lanes (&acc)[R], const float* a, int64_t a_stride, const float* w,
                              int64_t w_stride, int64_t count) {
  const float* rows[(R + 2) / 3];
#pragma GCC unroll 16
  for (int j = 0; j < (R + 2) / 3; ++j) rows[j] = a + 3 * j * a_stride;
  const auto advance = [&](int64_t by) {
    w += by * w_stride;
#pragma GCC unroll 16
    for (int j = 0; j < (R + 2) / 3; ++j) {
      rows[j] += by;
      asm("" : "+r"(rows[j]));
    }
  };
  int64_t i = 1;
  if (count < 4) {
    multiply_step<true, R>(acc, rows, a_stride, 0, w);
    advance(1);
  } else {
    multiply_four<true, R>(acc, rows, a_stride, w, w_stride);
    advance(4);
    for (i = 4; i + 4 <= count; i += 4) {
      multiply_four<false, R>(acc, rows, a_stride, w, w_stride);
      advance(4);
    }
  }
  for (; i < count; ++i, advance(1)) multiply_step<false, R>(acc, rows, a_stride, 0, w);
}

struct RowsTile {
  template <int R>
  static void run(const RowsProduct& t, int64_t row, int64_t line, int64_t lines) {
    const float* a = t.a + row * t.a_stride;
    Lanes sum[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r] = splat(0.0f);
    for (int64_t s = 0; s < t.steps; s += kLanes) {
      const float* w = t.groups ? t.groups[s / kLanes] + t.column : t.w + s * t.w_stride;
      Lanes acc[R];
      if (t.steps - s >= kLanes) {
        multiply_steps<R>(acc, a + s, t.a_stride, w, t.w_stride, kLanes);
      } else {
        multiply_steps<R>(acc, a + s, t.a_stride, w, t.w_stride, t.steps - s);
      }
      asm volatile("" : : "r"(sum) : "memory");  // the sums stay in memory, the registers are the chains'
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sum[r] = sum[r] + acc[r];
      bring(t.ahead, line, line + lines);
      line += lines;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      float* c = t.c + (row + r) * t.ldc;
      store(t.load_c ? load(c) + sum[r] : sum[r], c);
    }
  }
};

void multiply_rows(const RowsProduct& t) {
  run_strips<RowsTile>(t, (t.steps + kLanes - 1) / kLanes);
}

#if defined(__F16C__)
void f16_to_f32_row(const uint16_t* x, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
  }
  if (i < n) {
    uint16_t in[8] = {};
    float wide[8];
    for (int64_t j = i; j < n; ++j) in[j - i] = x[j];
    _mm256_storeu_ps(wide, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in))));
    for (int64_t j = i; j < n; ++j) out[j] = wide[j - i];
  }
}

void round_f16_row(float* x, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i h = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_ps(x + i, _mm256_cvtph_ps(h));
  }
  if (i < n) {
    float in[8] = {};
    for (int64_t j = i; j < n; ++j) in[j - i] = x[j];
    const __m128i h = _mm256_cvtps_ph(_mm256_loadu_ps(in), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_ps(in, _mm256_cvtph_ps(h));
    for (int64_t j = i; j < n; ++j) x[j] = in[j - i];
  }
}
#endif

#if defined(__AVX2__)
/// Four registers of 4-unit rows, transposed inside each 128-bit lane: out[u] lane L holds unit u of
/// lane L of a, b, c, d.
#if defined(__AVX512F__)
typedef __m512i Quad;
#define DUET_QUAD(name) _mm512_##name
#else
typedef __m256i Quad;
#define DUET_QUAD(name) _mm256_##name
#endif
DUET_LANE void transpose_lanes(const Quad (&in)[4], Quad (&out)[4]) {
  const Quad ab_low = DUET_QUAD(unpacklo_epi32)(in[0], in[1]),
             ab_high = DUET_QUAD(unpackhi_epi32)(in[0], in[1]);
  const Quad cd_low = DUET_QUAD(unpacklo_epi32)(in[2], in[3]),
             cd_high = DUET_QUAD(unpackhi_epi32)(in[2], in[3]);
  out[0] = DUET_QUAD(unpacklo_epi64)(ab_low, cd_low);
  out[1] = DUET_QUAD(unpackhi_epi64)(ab_low, cd_low);
  out[2] = DUET_QUAD(unpacklo_epi64)(ab_high, cd_high);
  out[3] = DUET_QUAD(unpackhi_epi64)(ab_high, cd_high);
}

/// Rows first, first + 4, first + 8, first + 12 (AVX2: the first two), four units each.
DUET_LANE Quad gather_rows(const uint32_t* rows, int64_t stride, int64_t first) {
  const auto row = [&](int64_t r) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + (first + r) * stride));
  };
#if defined(__AVX512F__)
  Quad q = _mm512_castsi128_si512(row(0));
  q = _mm512_inserti32x4(q, row(4), 1);
  q = _mm512_inserti32x4(q, row(8), 2);
  return _mm512_inserti32x4(q, row(12), 3);
#else
  return _mm256_inserti128_si256(_mm256_castsi128_si256(row(0)), row(4), 1);
#endif
}
#endif

void pack_columns_block(const uint32_t* rows, int64_t stride, int64_t count, int64_t units, uint32_t* out) {
  int64_t u = 0;
#if defined(__AVX2__)
  if (count == kLanes) {
    for (; u + 4 <= units; u += 4) {
      for (int64_t part = 0; part < kParts; ++part) {
        Quad in[4], turned[4];
        for (int i = 0; i < 4; ++i) in[i] = gather_rows(rows + u, stride, part * kPartLanes + i);
        transpose_lanes(in, turned);
        for (int i = 0; i < 4; ++i)
          __builtin_memcpy(out + (u + i) * kLanes + part * kPartLanes, &turned[i], sizeof(Quad));
      }
    }
  }
#endif
  for (; u < units; ++u) {
    for (int64_t r = 0; r < kLanes; ++r) out[u * kLanes + r] = r < count ? rows[r * stride + u] : 0u;
  }
}

void pack_rows_f32_block(const float* rows, int64_t stride, int64_t k, int64_t n, float* packed,
                         int64_t panel) {
  for (int64_t first = 0; first < n; first += kLanes, packed += panel) {
    const int64_t count = n - first < kLanes ? n - first : kLanes;
    float* out = packed;
    for (int64_t i = 0; i < k; ++i, out += kLanes) {
      const float* row = rows + i * stride + first;
      if (count == kLanes) {
        store(load(row), out);
      } else {
        for (int64_t j = 0; j < kLanes; ++j) out[j] = j < count ? row[j] : 0.0f;
      }
    }
  }
}

void pack_rows_bf16_block(const uint16_t* rows, int64_t stride, int64_t k, int64_t n, uint16_t* packed,
                          int64_t panel) {
  for (int64_t first = 0; first < n; first += kLanes, packed += panel) {
    const int64_t count = n - first < kLanes ? n - first : kLanes;
    uint16_t* out = packed;
    for (int64_t i = 0; i < k; i += 2, out += 2 * kLanes) {
      const uint16_t* even = rows + i * stride + first;
      const bool odd_end = i + 1 == k;
#if defined(__AVX2__)
      if (count == kLanes && !odd_end) {
        // 16 words of two rows, interleaved.
        const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(even));
        const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(even + stride));
        const __m256i low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permute2x128_si256(low, high, 0x20));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + kLanes),
                            _mm256_permute2x128_si256(low, high, 0x31));
        continue;
      }
#endif
      for (int64_t j = 0; j < kLanes; ++j) {
        out[2 * j] = j < count ? even[j] : uint16_t{0};
        out[2 * j + 1] = j < count && !odd_end ? even[stride + j] : uint16_t{0};
      }
    }
  }
}

}  // namespace
}  // namespace duet
