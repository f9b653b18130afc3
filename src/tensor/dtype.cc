#include "tensor/dtype.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstring>

#include "base/error.h"

// Clones for wider vectors are integer-exact, so every clone gives the same bits. Sanitizer
// runtimes start after ifunc resolvers run, hence no clones there.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define DUET_CLONES __attribute__((target_clones("default", "avx2", "arch=skylake-avx512")))
#else
#define DUET_CLONES
#endif

namespace duet {

size_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kBf16:
    case DType::kF16: return 2;
    case DType::kF8E4M3:
    case DType::kI8:
    case DType::kU8: return 1;
    case DType::kI64: return 8;
  }
  return 0;
}

const char* to_string(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "float32";
    case DType::kBf16: return "bfloat16";
    case DType::kF16: return "float16";
    case DType::kF8E4M3: return "float8_e4m3";
    case DType::kI8: return "int8";
    case DType::kI32: return "int32";
    case DType::kI64: return "int64";
    case DType::kU8: return "uint8";
  }
  return "unknown";
}

f16_t to_f16(float v) {
  const uint32_t u = std::bit_cast<uint32_t>(v);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t mag = u & 0x7fffffffu;
  if (mag > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u | ((mag >> 13) & 0x1ffu))};
  if (mag >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to ≥ 65536
  if (mag < 0x38800000u) {  // below 2^-14: subnormal or zero; adding 0.5 rounds at 2^-24
    const float shifted = std::bit_cast<float>(mag) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = mag + 0xfffu + ((mag >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

float to_f32(f16_t v) {
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000u) << 16;
  const uint32_t mag = v.bits & 0x7fffu;
  if (mag >= 0x7c00u)
    return std::bit_cast<float>(sign | 0x7f800000u | (mag > 0x7c00u ? 0x400000u : 0u) |
                                ((mag & 0x3ffu) << 13));
  if (mag < 0x400u) {  // subnormal: mag · 2^-24 is exact in f32
    const float f = static_cast<float>(mag) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(f) | sign);
  }
  return std::bit_cast<float>(sign | ((mag << 13) + 0x38000000u));
}

#if defined(__x86_64__)
namespace {
__attribute__((target("avx512f,avx512bw"))) void f32_to_bf16_avx512(const float* in, bf16_t* out,
                                                                    size_t count) {
  // (Zero-masked shifts: GCC 12 takes the plain ones for reads of an uninitialised variable.)
  const __m512i one = _mm512_set1_epi32(1), half = _mm512_set1_epi32(0x7fff),
                quiet = _mm512_set1_epi32(0x400000);
  for (size_t i = 0; i < count; i += 16) {
    const size_t left = count - i;
    const auto mask = static_cast<__mmask16>(left >= 16 ? 0xffffu : (1u << left) - 1u);
    const __m512i u = _mm512_maskz_loadu_epi32(mask, in + i);
    const __m512i odd = _mm512_and_si512(_mm512_maskz_srli_epi32(0xffff, u, 16), one);
    __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, half));
    const __m512 v = _mm512_castsi512_ps(u);
    rounded = _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), u, quiet);
    _mm512_mask_cvtepi32_storeu_epi16(out + i, mask, _mm512_maskz_srli_epi32(0xffff, rounded, 16));
  }
}
__attribute__((target("avx2"))) __m256i bf16_bits_avx2(const float* in) {
  const __m256i u = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256 v = _mm256_castsi256_ps(u);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}
__attribute__((target("avx2"))) size_t f32_to_bf16_avx2(const float* in, bf16_t* out, size_t count) {
  size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m256i both = _mm256_packus_epi32(bf16_bits_avx2(in + i), bf16_bits_avx2(in + i + 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_permute4x64_epi64(both, 0xd8));
  }
  return i;
}
}  // namespace
#endif

// Most of what packing activations costs, so written out for wide vectors: the compiler's take 1 cycle an
// element.
void f32_to_bf16(const float* in, bf16_t* out, size_t count) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512bw")) return f32_to_bf16_avx512(in, out, count);
  if (__builtin_cpu_supports("avx2")) {
    const size_t done = f32_to_bf16_avx2(in, out, count);
    in += done, out += done, count -= done;
  }
#endif
  const auto* src = reinterpret_cast<const uint32_t*>(in);
  auto* dst = reinterpret_cast<uint16_t*>(out);
  for (size_t i = 0; i < count; ++i) {
    const uint32_t u = src[i];
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const uint32_t nan = (u >> 16) | 0x40u;
    dst[i] = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
  }
}

DUET_CLONES void bf16_to_f32(const bf16_t* in, float* out, size_t count) {
  const auto* src = reinterpret_cast<const uint16_t*>(in);
  auto* dst = reinterpret_cast<uint32_t*>(out);
  for (size_t i = 0; i < count; ++i) dst[i] = static_cast<uint32_t>(src[i]) << 16;
}

void f32_to_f16(const float* in, f16_t* out, size_t count) {
  for (size_t i = 0; i < count; ++i) out[i] = to_f16(in[i]);
}

void f16_to_f32(const f16_t* in, float* out, size_t count) {
  for (size_t i = 0; i < count; ++i) out[i] = to_f32(in[i]);
}

float f8e4m3_to_f32(uint8_t bits) {
  const uint32_t magnitude = bits & 0x7fu;
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80u) << 24;
  if (magnitude == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  // Exponent and mantissa moved to float32's places, then rescaled: exact, subnormal numbers too.
  const float value = std::bit_cast<float>(magnitude << 20) * 0x1p120f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

uint8_t f32_to_f8e4m3(float v) {
  const uint32_t u = std::bit_cast<uint32_t>(v);
  const auto sign = static_cast<uint8_t>((u >> 24) & 0x80u);
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7f;
  if (magnitude >= 0x43e00000u) return sign | 0x7e;  // 448
  if (magnitude < 0x3c800000u) {                     // below 2^-6: steps of 2^-9; adding 2^14 rounds there
    const float shifted = std::bit_cast<float>(magnitude) + 0x1p14f;
    return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x46800000u));
  }
  const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  return static_cast<uint8_t>(sign | ((rounded - 0x3c000000u) >> 20));
}

float quantise_row_i8(const float* in, size_t count, int8_t* out) {
  constexpr float kMagic = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer
  uint32_t most = 0;                     // as integers, magnitudes keep their order, and NaN is the largest
  for (size_t i = 0; i < count; ++i) most = std::max(most, std::bit_cast<uint32_t>(in[i]) & 0x7fffffffu);
  const float scale = std::bit_cast<float>(most) / 127.0f;
  if (!(scale > 0.0f) || most >= 0x7f800000u) {
    std::fill_n(out, count, int8_t{0});
    return scale;
  }
  for (size_t i = 0; i < count; ++i) {
    const float q = std::clamp(in[i] / scale, -127.0f, 127.0f) + kMagic;  // denormal scales overshoot
    out[i] = static_cast<int8_t>(std::bit_cast<uint32_t>(q) & 0xffu);
  }
  return scale;
}

void convert_to_f32(const void* in, DType dtype, float* out, size_t count) {
  switch (dtype) {
    case DType::kF32: std::memcpy(out, in, count * sizeof(float)); return;
    case DType::kBf16: bf16_to_f32(static_cast<const bf16_t*>(in), out, count); return;
    case DType::kF16: f16_to_f32(static_cast<const f16_t*>(in), out, count); return;
    case DType::kF8E4M3:
      for (size_t i = 0; i < count; ++i) out[i] = f8e4m3_to_f32(static_cast<const uint8_t*>(in)[i]);
      return;
    case DType::kI8:
      for (size_t i = 0; i < count; ++i) out[i] = static_cast<const int8_t*>(in)[i];
      return;
    default: break;
  }
  throw Error(ErrorKind::kUnsupported, std::string("no conversion from ") + to_string(dtype) + " to float32");
}

void convert_from_f32(const float* in, DType dtype, void* out, size_t count) {
  switch (dtype) {
    case DType::kF32: std::memcpy(out, in, count * sizeof(float)); return;
    case DType::kBf16: f32_to_bf16(in, static_cast<bf16_t*>(out), count); return;
    case DType::kF16: f32_to_f16(in, static_cast<f16_t*>(out), count); return;
    case DType::kF8E4M3:
      for (size_t i = 0; i < count; ++i) static_cast<uint8_t*>(out)[i] = f32_to_f8e4m3(in[i]);
      return;
    default: break;
  }
  throw Error(ErrorKind::kUnsupported, std::string("no conversion from float32 to ") + to_string(dtype));
}

}  // namespace duet
