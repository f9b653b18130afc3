#include <bit>
#include <cmath>

#include "kernels/cpu/ffn.h"

namespace duet::ffn_detail {
namespace {

float power_of_two(int32_t n) {
  return std::bit_cast<float>(static_cast<uint32_t>(n + 127) << 23);
}

/// e^x for x ≤ 0, within 2 ulp; as in ffn_avx2.cc, with a product and a sum for each fma, and not
/// libm's, which chooses by the machine.
float exp_negative(float x) {
  x = x < -110.0f ? -110.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 · 2^23: the integer is in the low bits
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693145751953125f) - n * 1.428606765330187e-6f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t whole = x == x ? std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(12582912.0f) : 0;
  const int32_t half = whole >> 1;
  return p * power_of_two(half) * power_of_two(whole - half);
}

void silu_mul(const float* in, int64_t panels, float* out) {
  for (int64_t p = 0; p < panels; ++p) {
    for (int i = 0; i < 16; ++i) {
      const float g = in[p * 32 + i];
      const float e = exp_negative(-std::fabs(g));
      const float top = g >= 0.0f ? g : g * e;
      out[p * 16 + i] = top / (1.0f + e) * in[p * 32 + 16 + i];
    }
  }
}

void scaled_add(const float* y, float weight, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = std::fma(weight, y[i], out[i]);
}

constexpr FfnKernels kKernels = {silu_mul, scaled_add};

}  // namespace

const FfnKernels* ffn_kernels_portable() {
  return &kKernels;
}

}  // namespace duet::ffn_detail
