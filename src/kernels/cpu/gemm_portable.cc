#include <bit>

#include "kernels/cpu/gemm_kernels.h"

// Plain C++ for any x86-64. Without an FMA instruction std::fma is a library call per element, so at
// this level a step of the chain is a rounded product and a rounded sum; order and exactness rules
// are the same.

namespace duet::gemm_detail {
namespace {

enum class Kind { kF32, kBf16, kF16 };

/// 16 columns of step s as float32.
template <Kind K>
void widen(const std::byte* w, int64_t s, float* out) {
  if constexpr (K == Kind::kF32) {
    const float* in = reinterpret_cast<const float*>(w) + s * 16;
    for (int c = 0; c < 16; ++c) out[c] = in[c];
  } else if constexpr (K == Kind::kBf16) {
    const uint32_t* in = reinterpret_cast<const uint32_t*>(w) + s / 2 * 16;
    const uint32_t shift = s % 2 == 0 ? 16 : 0;
    for (int c = 0; c < 16; ++c) out[c] = std::bit_cast<float>((in[c] << shift) & 0xffff0000u);
  } else {
    // Exponent and mantissa moved to float32's places, then rescaled: exact for normal and subnormal
    // numbers; infinity and NaN get the full exponent.
    const uint16_t* in = reinterpret_cast<const uint16_t*>(w) + s * 16;
    for (int c = 0; c < 16; ++c) {
      const uint32_t h = in[c];
      const uint32_t moved = (h & 0x7fffu) << 13;
      const uint32_t scaled = std::bit_cast<uint32_t>(std::bit_cast<float>(moved) * 0x1p112f);
      const uint32_t special = (h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
      out[c] = std::bit_cast<float>(scaled | special | ((h & 0x8000u) << 16));
    }
  }
}

template <Kind K, int R>
void tile(int64_t steps, const float* a, const std::byte* w, int64_t, float* c, int64_t ldc, bool load_c) {
  constexpr int64_t kChain = K == Kind::kF32 ? kSumSteps : kSumStepsNarrow;
  float sum[R][16] = {};
  for (int64_t s = 0; s < steps;) {
    const int64_t end = steps - s < kChain ? steps : s + kChain;
    float acc[R][16] = {};
    for (; s < end; ++s) {
      float wide[16];
      widen<K>(w, s, wide);
      for (int r = 0; r < R; ++r) {
        const float x = a[r * kRowWords + s];
        for (int i = 0; i < 16; ++i) acc[r][i] += x * wide[i];
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < 16; ++i) sum[r][i] += acc[r][i];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < 16; ++i) c[r * ldc + i] = load_c ? c[r * ldc + i] + sum[r][i] : sum[r][i];
  }
}

template <Kind K>
constexpr TileSet tiles() {
  return {2, false, {{tile<K, 1>, nullptr, nullptr}, {tile<K, 2>, nullptr, nullptr}}};
}

void round_row(Rounding rounding, const float* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = round_to(in[i], rounding);
}

constexpr GemmKernels kKernels = {tiles<Kind::kF32>(), tiles<Kind::kBf16>(), tiles<Kind::kF16>(), round_row};

}  // namespace

const GemmKernels* gemm_kernels_portable() {
  return &kKernels;
}

}  // namespace duet::gemm_detail
