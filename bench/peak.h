// What one core of this machine can do, for benchmarks to hold their figures against: multiply-adds on
// registers, reading memory. Measured in the same run and in CPU time, so that neighbours on a busy
// machine cost little. Included by bench/*_bench.cc.
#pragma once

#include <immintrin.h>
#include <time.h>

#include <algorithm>
#include <functional>
#include <random>
#include <vector>

#include "base/cpu.h"
#include "tensor/arena.h"

namespace duet::bench {

/// CPU time of this thread: on a busy machine the clock on the wall measures the neighbours.
inline double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

inline float g_sink = 0.0f;  // keeps results alive

// Twelve independent chains in registers: enough for a latency of 4 to 6 cycles.
#define DUET_PEAK_EACH(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11)
#define DUET_PEAK_SUM(i) +a##i[0]
#define DUET_PEAK_BODY(type, step, sum, lanes)  \
  DUET_PEAK_EACH(type)                          \
  const double begin = cpu_seconds();           \
  for (int64_t i = 0; i < rounds; ++i) {        \
    DUET_PEAK_EACH(step)                        \
  }                                             \
  const double seconds = cpu_seconds() - begin; \
  g_sink += 0.0f DUET_PEAK_EACH(sum);           \
  return static_cast<double>(rounds) * 12 * 2 * (lanes) / seconds * 1e-9;
#define DUET_PEAK_YMM(i) __m256 a##i = x;
#define DUET_PEAK_ZMM(i) __m512 a##i = y;
#define DUET_PEAK_FMA256(i)           \
  a##i = _mm256_fmadd_ps(a##i, x, x); \
  asm volatile("" : "+x"(a##i));
#define DUET_PEAK_FMA512(i)           \
  a##i = _mm512_fmadd_ps(a##i, y, y); \
  asm volatile("" : "+v"(a##i));
#define DUET_PEAK_DOT512(i)            \
  a##i = _mm512_dpbf16_ps(a##i, x, x); \
  asm volatile("" : "+v"(a##i));

__attribute__((target("avx2,fma"))) inline double peak_avx2(int64_t rounds) {
  const __m256 x = _mm256_set1_ps(0.5f);
  DUET_PEAK_BODY(DUET_PEAK_YMM, DUET_PEAK_FMA256, DUET_PEAK_SUM, 8)
}
__attribute__((target("avx512f"))) inline double peak_avx512(int64_t rounds) {
  const __m512 y = _mm512_set1_ps(0.5f);
  DUET_PEAK_BODY(DUET_PEAK_ZMM, DUET_PEAK_FMA512, DUET_PEAK_SUM, 16)
}
__attribute__((target("avx512f,avx512bf16"))) inline double peak_dot(int64_t rounds) {
  const __m512 y = _mm512_set1_ps(0.5f);
  const __m512bh x = reinterpret_cast<__m512bh>(y);
  DUET_PEAK_BODY(DUET_PEAK_ZMM, DUET_PEAK_DOT512, DUET_PEAK_SUM, 32)
}

// int8 products: what a core does with vpdpbusd, or, without it, with the exact way of gemm8_avx2.cc.
#define DUET_PEAK_INT256(i)                                                                                \
  a##i = _mm256_add_epi32(a##i, _mm256_madd_epi16(_mm256_maddubs_epi16(x, _mm256_sign_epi8(z, x)), ones)); \
  asm volatile("" : "+x"(a##i), "+x"(x), "+x"(z));
#define DUET_PEAK_INT512(i)               \
  a##i = _mm512_dpbusd_epi32(a##i, y, y); \
  asm volatile("" : "+v"(a##i));
#define DUET_PEAK_YMMI(i) __m256i a##i = x;
#define DUET_PEAK_ZMMI(i) __m512i a##i = y;
#define DUET_PEAK_SUMI(i) +static_cast<float>(a##i[0] & 1)

__attribute__((target("avx2"))) inline double peak_int8_avx2(int64_t rounds) {
  __m256i x = _mm256_set1_epi8(3), z = x;
  const __m256i ones = _mm256_set1_epi16(1);
  DUET_PEAK_BODY(DUET_PEAK_YMMI, DUET_PEAK_INT256, DUET_PEAK_SUMI, 32)
}
__attribute__((target("avx512f,avx512vnni"))) inline double peak_int8_avx512(int64_t rounds) {
  const __m512i y = _mm512_set1_epi32(0x01010101);
  DUET_PEAK_BODY(DUET_PEAK_ZMMI, DUET_PEAK_INT512, DUET_PEAK_SUMI, 64)
}

inline double peak_int8(CpuLevel level) {  // GOP/s
  return level == CpuLevel::kAvx2 ? peak_int8_avx2(40000) : peak_int8_avx512(40000);
}

inline double peak(CpuLevel level, bool dot) {  // GFLOP/s
  if (dot) return peak_dot(40000);
  return level == CpuLevel::kAvx2 ? peak_avx2(80000) : peak_avx512(40000);
}

inline double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

inline double seconds_of(const std::function<void()>& body) {
  const double begin = cpu_seconds();
  body();
  return cpu_seconds() - begin;
}

inline std::vector<float> random_floats(int64_t count) {
  std::mt19937 gen(1);
  std::uniform_real_distribution<float> dist(-1.0f, 1.0f);
  std::vector<float> v(static_cast<size_t>(count));
  for (float& x : v) x = dist(gen);
  return v;
}

/// GB/s of reading `bytes` once with four streams.
inline double read_gbps(const AlignedBuffer& buffer) {
  const auto* data = reinterpret_cast<const __m128i*>(buffer.data());
  const size_t quarter = buffer.size() / 16 / 4;
  __m128i sum[4] = {};
  const double s = seconds_of([&] {
    for (size_t i = 0; i + 4 <= quarter; i += 4) {
      for (size_t q = 0; q < 4; ++q) {
        const __m128i* at = data + q * quarter + i;
        _mm_prefetch(reinterpret_cast<const char*>(at + 64), _MM_HINT_T0);
        for (size_t j = 0; j < 4; ++j) sum[q] = _mm_xor_si128(sum[q], at[j]);
      }
    }
  });
  for (const __m128i& v : sum) g_sink += static_cast<float>(_mm_cvtsi128_si32(v) & 1);
  return static_cast<double>(buffer.size()) / s * 1e-9;
}

}  // namespace duet::bench
