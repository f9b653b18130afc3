// Matrix products on one core: GFLOP/s, the share of what the core can do at all (a loop of
// multiply-adds on registers, measured between the products), and the ratio to OpenBLAS (float32).
// For few rows, where memory is the limit: GB/s of weights and the share of a plain read's GB/s.
//   gemm_bench [level] [rows]
#include <fmt/format.h>
#include <immintrin.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "base/cpu.h"
#include "kernels/ops.h"

#if DUET_HAVE_OPENBLAS
#include <cblas.h>
extern "C" void openblas_set_num_threads(int);
#endif

namespace duet {
namespace {

constexpr int kRepeats = 15;

/// CPU time of this thread: on a busy machine the clock on the wall measures the neighbours.
double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

float g_sink = 0.0f;  // keeps results alive

// Twelve independent chains in registers: enough for a latency of 4 to 6 cycles.
#define EACH(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11)
#define SUM(i) +a##i[0]
#define BODY(type, step, lanes)                 \
  EACH(type)                                    \
  const double begin = cpu_seconds();           \
  for (int64_t i = 0; i < rounds; ++i) {        \
    EACH(step)                                  \
  }                                             \
  const double seconds = cpu_seconds() - begin; \
  g_sink += 0.0f EACH(SUM);                     \
  return static_cast<double>(rounds) * 12 * 2 * (lanes) / seconds * 1e-9;
#define YMM(i) __m256 a##i = x;
#define ZMM(i) __m512 a##i = y;
#define FMA256(i)                     \
  a##i = _mm256_fmadd_ps(a##i, x, x); \
  asm volatile("" : "+x"(a##i));
#define FMA512(i)                     \
  a##i = _mm512_fmadd_ps(a##i, y, y); \
  asm volatile("" : "+v"(a##i));
#define DOT512(i)                      \
  a##i = _mm512_dpbf16_ps(a##i, x, x); \
  asm volatile("" : "+v"(a##i));

__attribute__((target("avx2,fma"))) double peak_avx2(int64_t rounds) {
  const __m256 x = _mm256_set1_ps(0.5f);
  BODY(YMM, FMA256, 8)
}
__attribute__((target("avx512f"))) double peak_avx512(int64_t rounds) {
  const __m512 y = _mm512_set1_ps(0.5f);
  BODY(ZMM, FMA512, 16)
}
__attribute__((target("avx512f,avx512bf16"))) double peak_dot(int64_t rounds) {
  const __m512 y = _mm512_set1_ps(0.5f);
  const __m512bh x = reinterpret_cast<__m512bh>(y);
  BODY(ZMM, DOT512, 32)
}

double peak(CpuLevel level, bool dot) {
  if (dot) return peak_dot(40000);
  return level == CpuLevel::kAvx2 ? peak_avx2(80000) : peak_avx512(40000);
}

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

double seconds_of(const std::function<void()>& body) {
  const double begin = cpu_seconds();
  body();
  return cpu_seconds() - begin;
}

std::vector<float> random_floats(int64_t count) {
  std::mt19937 gen(1);
  std::uniform_real_distribution<float> dist(-1.0f, 1.0f);
  std::vector<float> v(static_cast<size_t>(count));
  for (float& x : v) x = dist(gen);
  return v;
}

/// GB/s of reading `bytes` once with four streams.
double read_gbps(const AlignedBuffer& buffer) {
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

/// Weights that together exceed the last-level cache when `cold`; one matrix otherwise.
struct Weights {
  Weights(int64_t n, int64_t k, DType dtype, bool cold) {
    const std::vector<float> f = random_floats(n * k);
    const WeightView view{f.data(), DType::kF32, n, k, k, 1};
    const size_t one = packed_bytes(n, k, dtype);
    const size_t copies = cold ? (size_t{160} << 20) / one + 1 : 1;
    for (size_t i = 0; i < copies; ++i) packed.emplace_back(view, dtype);
  }
  PackedView next() { return packed[at++ % packed.size()].view(); }
  std::vector<PackedMatrix> packed;
  size_t at = 0;
};

void bench_shape(CpuLevel level, DType dtype, Rounding rounding, int64_t m, int64_t n, int64_t k, bool cold) {
  const bool dot = level == CpuLevel::kAvx512Bf16 && dtype == DType::kBf16 && rounding == Rounding::kBf16;
  const std::vector<float> a = random_floats(m * k);
  std::vector<float> c(static_cast<size_t>(m * n));
  Weights weights(n, k, dtype, cold);
  Arena scratch(gemm_scratch_bytes(m, n, k, 1));
  const KernelContext cx{level, nullptr, &scratch, rounding};
  const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  const int inner = static_cast<int>(std::clamp(2e8 / flops, 1.0, 100.0));
  std::vector<double> speed, share, ratio, gbps;
  for (int r = 0; r < kRepeats; ++r) {
    const double s = seconds_of([&] {
                       for (int i = 0; i < inner; ++i) {
                         gemm(cx, ConstRows(a.data(), m, k, k), weights.next(), Rows(c.data(), m, n, n));
                       }
                     }) /
                     inner;
    speed.push_back(flops / s * 1e-9);
    share.push_back(speed.back() / peak(level, dot));
    gbps.push_back(static_cast<double>(packed_bytes(n, k, dtype)) / s * 1e-9);
#if DUET_HAVE_OPENBLAS
    if (dtype == DType::kF32 && !cold) {
      static std::vector<float> w;
      w.resize(static_cast<size_t>(n * k), 0.5f);
      const double blas =
          seconds_of([&] {
            for (int i = 0; i < inner; ++i) {
              cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(m), static_cast<int>(n),
                          static_cast<int>(k), 1.0f, a.data(), static_cast<int>(k), w.data(),
                          static_cast<int>(k), 0.0f, c.data(), static_cast<int>(n));
            }
          }) /
          inner;
      ratio.push_back(blas / s);
    }
#endif
    g_sink += c[0];
  }
  const char* roundings[] = {"-", "bf16", "f16"};
  fmt::print("{:<11} {:<9} {:<5} {:>4} × {:>5} × {:>5}{} {:8.1f} GFLOP/s {:5.2f} of peak  {:6.1f} GB/s",
             to_string(level), to_string(dtype), roundings[static_cast<int>(rounding)], m, n, k,
             cold ? " cold" : "     ", median(speed), median(share), median(gbps));
  if (!ratio.empty()) fmt::print("  {:5.2f} × OpenBLAS", median(ratio));
  fmt::print("\n");
}

void bench_level(CpuLevel level, int64_t only) {
  struct Kind {
    DType dtype;
    Rounding rounding;
  };
  for (const Kind kind : {Kind{DType::kF32, Rounding::kNone},
                          {DType::kBf16, Rounding::kBf16},
                          {DType::kBf16, Rounding::kNone},
                          {DType::kF16, Rounding::kF16}}) {
    for (const int64_t m : {1, 4, 8, 16, 64, 512}) {
      if (only == 0 || only == m) bench_shape(level, kind.dtype, kind.rounding, m, 1024, 1024, false);
    }
    for (const int64_t m : {1, 4, 16}) {
      if (only == 0 || only == m) bench_shape(level, kind.dtype, kind.rounding, m, 2048, 2048, true);
    }
  }
}

}  // namespace
}  // namespace duet

int main(int argc, char** argv) {
  using namespace duet;
#if DUET_HAVE_OPENBLAS
  openblas_set_num_threads(1);
#endif
  const AlignedBuffer buffer(size_t{256} << 20);
  std::fill_n(reinterpret_cast<char*>(const_cast<std::byte*>(buffer.data())), buffer.size(), 1);
  read_gbps(buffer);
  const double read = read_gbps(buffer);
  fmt::print("{}: one core reads {:.1f} GB/s; shares are of peaks measured between the products\n",
             cpu_model_name(), read);
  for (const CpuLevel level : available_cpu_levels()) {
    if (level == CpuLevel::kPortable || (argc > 1 && to_string(level) != std::string(argv[1]))) continue;
    bench_level(level, argc > 2 ? std::atoi(argv[2]) : 0);
  }
  return g_sink == 0.12345f ? 1 : 0;
}
