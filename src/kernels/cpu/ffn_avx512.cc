#include <immintrin.h>

#include "kernels/cpu/ffn.h"

namespace duet::ffn_detail {
namespace {

/// e^x for x ≤ 0, within 2 ulp (Taylor to r⁷: the rest is below 6e-9 for |r| ≤ ln 2 / 2).
__m512 exp_negative(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-110.0f), x);  // below, e^x is zero; NaN passes
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0x08);
  __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0.693145751953125f), x);  // ln 2 in two parts
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(-1.428606765330187e-6f), r);
  __m512 p = _mm512_set1_ps(1.0f / 5040.0f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

void silu_mul(const float* in, int64_t panels, float* out) {
  const __m512 one = _mm512_set1_ps(1.0f);
  for (int64_t p = 0; p < panels; ++p) {
    const __m512 g = _mm512_loadu_ps(in + p * 32);
    const __m512 u = _mm512_loadu_ps(in + p * 32 + 16);
    // e^-|g| never overflows: g ≥ 0: g / (1 + e); g < 0: g·e / (1 + e).
    const __m512 e = exp_negative(_mm512_or_ps(g, _mm512_set1_ps(-0.0f)));
    const __mmask16 positive = _mm512_cmp_ps_mask(g, _mm512_setzero_ps(), _CMP_GE_OQ);
    const __m512 top = _mm512_mask_blend_ps(positive, _mm512_mul_ps(g, e), g);
    _mm512_storeu_ps(out + p * 16, _mm512_mul_ps(_mm512_div_ps(top, _mm512_add_ps(one, e)), u));
  }
}

void scaled_add(const float* y, float weight, int64_t count, float* out) {
  const __m512 w = _mm512_set1_ps(weight);
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t left = count - i;
    const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffffu : (1u << left) - 1u);
    const __m512 sum =
        _mm512_fmadd_ps(w, _mm512_maskz_loadu_ps(mask, y + i), _mm512_maskz_loadu_ps(mask, out + i));
    _mm512_mask_storeu_ps(out + i, mask, sum);
  }
}

constexpr FfnKernels kKernels = {silu_mul, scaled_add};

}  // namespace

const FfnKernels* ffn_kernels_avx512() {
  return &kKernels;
}

}  // namespace duet::ffn_detail
