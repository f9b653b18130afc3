#include <bit>
#include <cmath>

#include "kernels/cpu/gemm_kernels.h"

// 8-bit weights in plain C++; see gemm8_avx512.cc. As in gemm_portable.cc, a product and a sum where the
// other levels have a fused step.

namespace duet::gemm_detail {
namespace {

float widen_one(std::byte b) {
  const auto bits = static_cast<uint32_t>(b);
  const float value = std::bit_cast<float>((bits & 0x7fu) << 20) * 0x1p120f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | (bits & 0x80u) << 24);
}

void widen(int64_t quads, const std::byte* w, std::byte* out) {
  auto* to = reinterpret_cast<float*>(out);
  for (int64_t q = 0; q < quads; ++q, w += 64, to += 64) {
    for (int i = 0; i < 4; ++i) {
      for (int c = 0; c < 16; ++c) to[i * 16 + c] = widen_one(w[c / 4 * 16 + i / 2 * 8 + c % 4 * 2 + i % 2]);
    }
  }
}

template <int R>
void tile(int64_t steps, const float* a, const std::byte* w, int64_t, float* c, int64_t ldc, bool load_c) {
  float sum[R][16] = {};
  for (int64_t s = 0; s < steps;) {
    const int64_t end = steps - s < kSumSteps ? steps : s + kSumSteps;
    float acc[R][16] = {};
    for (; s < end; s += 4) {
      float wide[64];
      widen(1, w + s * 16, reinterpret_cast<std::byte*>(wide));
      for (int i = 0; i < 4; ++i) {
        for (int r = 0; r < R; ++r) {
          const float x = a[r * kRowWords + s + i];
          for (int n = 0; n < 16; ++n) acc[r][n] += x * wide[i * 16 + n];
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int n = 0; n < 16; ++n) sum[r][n] += acc[r][n];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < 16; ++n) c[r * ldc + n] = load_c ? c[r * ldc + n] + sum[r][n] : sum[r][n];
  }
}

constexpr TileSet tiles() {
  return {2, false, {{tile<1>, nullptr, nullptr}, {tile<2>, nullptr, nullptr}}};
}

void add_scaled(const ScaledSums& s) {
  for (int r = 0; r < s.rows; ++r) {
    float* c = s.c + r * s.ldc;
    for (int64_t i = 0; i < s.columns; ++i) {
      const float v = s.sums[r * s.panels * 16 + i] *
                      reinterpret_cast<const float*>(s.scales + i / 16 * s.panel_stride)[i % 16];
      c[i] = s.load_c ? c[i] + v : v;
    }
  }
}

template <int R>
void int8_tile(int64_t quads, const std::byte* a, int64_t a_stride, int64_t scale_at, const std::byte* w,
               int64_t, float* c, int64_t ldc, bool load_c, const std::byte*) {
  const auto* scales = reinterpret_cast<const float*>(w);
  const auto* weights = reinterpret_cast<const int8_t*>(w + 128);
  for (int r = 0; r < R; ++r) {
    const auto* x = reinterpret_cast<const int8_t*>(a + r * a_stride);
    const float row_scale = *reinterpret_cast<const float*>(a + r * a_stride + scale_at);
    int32_t acc[16] = {};
    for (int64_t q = 0; q < quads; ++q) {
      for (int n = 0; n < 16; ++n) {
        for (int i = 0; i < 4; ++i) acc[n] += int32_t{x[q * 4 + i]} * weights[q * 64 + n * 4 + i];
      }
    }
    for (int n = 0; n < 16; ++n) {
      const float v = static_cast<float>(acc[n]) * row_scale * scales[n];
      c[r * ldc + n] = load_c ? c[r * ldc + n] + v : v;
    }
  }
}

void split_row(const float* in, int64_t count, std::byte* high, std::byte* low) {
  const RowScale s = row_scale(largest_magnitude(in, count), kInt16Most);
  for (int64_t i = 0; i < count; ++i) {
    const float q = std::nearbyint(in[i] * s.inverse);
    const int both = std::isfinite(q) ? static_cast<int>(q) : 0;
    const int h = static_cast<int>(std::nearbyint(static_cast<float>(both) * (1.0f / kInt16Base)));
    high[i] = static_cast<std::byte>(h);
    low[i] = static_cast<std::byte>(both - h * kInt16Base);
  }
  const int64_t padded = (count + 63) / 64 * 64;
  for (int64_t i = count; i < padded; ++i) high[i] = low[i] = std::byte{0};
  *reinterpret_cast<float*>(high + padded) = static_cast<float>(kInt16Base) * s.scale;
  *reinterpret_cast<float*>(low + padded) = s.scale;
}

void quantise_row(const float* in, int64_t count, std::byte* out) {
  const RowScale s = row_scale(largest_magnitude(in, count), 127);
  for (int64_t i = 0; i < count; ++i) {
    const float q = std::nearbyint(in[i] * s.inverse);
    out[i] = static_cast<std::byte>(std::isfinite(q) ? static_cast<int8_t>(q) : int8_t{-128});
  }
  const int64_t padded = (count + 63) / 64 * 64;
  for (int64_t i = count; i < padded; ++i) out[i] = std::byte{0};
  *reinterpret_cast<float*>(out + padded) = s.scale;
}

constexpr Int8Kernels kInt8 = {
    2, {{int8_tile<1>, nullptr, nullptr}, {int8_tile<2>, nullptr, nullptr}}, quantise_row, split_row};

}  // namespace

const WeightOnlyKernels* weight_only_portable() {
  static const WeightOnlyKernels kernels = {tiles(), &gemm_kernels_portable()->f32, widen, add_scaled};
  return &kernels;
}

const Int8Kernels* int8_kernels_portable() {
  return &kInt8;
}

}  // namespace duet::gemm_detail
