#include <immintrin.h>

#include "kernels/cpu/ffn.h"

namespace duet::ffn_detail {
namespace {

__m256 power_of_two(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

/// e^x for x ≤ 0, within 2 ulp (Taylor to r⁷: the rest is below 6e-9 for |r| ≤ ln 2 / 2).
__m256 exp_negative(__m256 x) {
  x = _mm256_max_ps(_mm256_set1_ps(-110.0f), x);  // below, e^x is zero; NaN passes
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), 0x08);
  __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-0.693145751953125f), x);  // ln 2 in two parts
  r = _mm256_fmadd_ps(n, _mm256_set1_ps(-1.428606765330187e-6f), r);
  __m256 p = _mm256_set1_ps(1.0f / 5040.0f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  // 2^n in two factors: n goes below the smallest exponent.
  const __m256i whole = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  p = _mm256_mul_ps(p, power_of_two(half));
  return _mm256_mul_ps(p, power_of_two(_mm256_sub_epi32(whole, half)));
}

void silu_mul(const float* in, int64_t panels, float* out) {
  const __m256 one = _mm256_set1_ps(1.0f);
  for (int64_t p = 0; p < 2 * panels; ++p) {
    const float* gate = in + p / 2 * 32 + p % 2 * 8;
    const __m256 g = _mm256_loadu_ps(gate);
    const __m256 u = _mm256_loadu_ps(gate + 16);
    // e^-|g| never overflows: g ≥ 0: g / (1 + e); g < 0: g·e / (1 + e).
    const __m256 e = exp_negative(_mm256_or_ps(g, _mm256_set1_ps(-0.0f)));
    const __m256 positive = _mm256_cmp_ps(g, _mm256_setzero_ps(), _CMP_GE_OQ);
    const __m256 top = _mm256_blendv_ps(_mm256_mul_ps(g, e), g, positive);
    _mm256_storeu_ps(out + p * 8, _mm256_mul_ps(_mm256_div_ps(top, _mm256_add_ps(one, e)), u));
  }
}

void scaled_add(const float* y, float weight, int64_t count, float* out) {
  const __m256 w = _mm256_set1_ps(weight);
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_fmadd_ps(w, _mm256_loadu_ps(y + i), _mm256_loadu_ps(out + i)));
  }
  if (i == count) return;
  const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count - i)), lane);
  const __m256 sum = _mm256_fmadd_ps(w, _mm256_maskload_ps(y + i, mask), _mm256_maskload_ps(out + i, mask));
  _mm256_maskstore_ps(out + i, mask, sum);
}

constexpr FfnKernels kKernels = {silu_mul, scaled_add};

}  // namespace

const FfnKernels* ffn_kernels_avx2() {
  return &kKernels;
}

}  // namespace duet::ffn_detail
