// Matrix products on one core: GFLOP/s, the share of what the core can do at all (a loop of
// multiply-adds on registers, measured between the products), and the ratio to OpenBLAS (float32).
// For few rows memory is the limit: GB/s of weights, to hold against the first line's plain read
// ("cold": the weights exceed the caches). int8 with inputs "int8" is W8A8, against the peak of int8
// products; fp8 and int8 with float inputs are widened, against the peak of the type they become.
//   gemm_bench [level] [rows] [type]
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/cpu.h"
#include "kernels/ops.h"
#include "peak.h"

#if DUET_HAVE_OPENBLAS
#include <cblas.h>
extern "C" void openblas_set_num_threads(int);
#endif

namespace duet {
namespace {

using bench::median;
using bench::peak;
using bench::peak_int8;
using bench::random_floats;
using bench::seconds_of;

constexpr int kRepeats = 15;

struct Kind {
  DType dtype;
  Rounding rounding;
  Inputs inputs = Inputs::kFloat;
};

/// Weights that together exceed the last-level cache when `cold`; one matrix otherwise.
struct Weights {
  Weights(int64_t n, int64_t k, const Kind& kind, bool cold) {
    const std::vector<float> f = random_floats(n * k);
    const std::vector<float> scales(static_cast<size_t>((n / 128 + 1) * (k / 128 + 1)), 0.01f);
    WeightView view{f.data(), DType::kF32, n, k, k, 1, {}};
    std::vector<uint8_t> bytes;
    if (kind.dtype == DType::kF8E4M3) {
      for (const float v : f) bytes.push_back(f32_to_f8e4m3(v * 448.0f));
      view = {bytes.data(), kind.dtype, n, k, k, 1, {scales.data(), 128, 128, 0, 0, k / 128 + 1, 1}};
    }
    const size_t one = packed_bytes(n, k, kind.dtype);
    const size_t copies = cold ? (size_t{160} << 20) / one + 1 : 1;
    for (size_t i = 0; i < copies; ++i) packed.emplace_back(view, PackAs(kind.dtype, kind.inputs));
  }
  PackedView next() { return packed[at++ % packed.size()].view(); }
  std::vector<PackedMatrix> packed;
  size_t at = 0;
};

void bench_shape(CpuLevel level, const Kind& kind, int64_t m, int64_t n, int64_t k, bool cold) {
  const DType dtype = kind.dtype;
  const bool narrow = dtype == DType::kBf16 || dtype == DType::kF8E4M3 || dtype == DType::kI8;
  const bool dot = level == CpuLevel::kAvx512Bf16 && narrow && kind.rounding == Rounding::kBf16;
  const bool int8 = kind.inputs == Inputs::kInt8;
  const std::vector<float> a = random_floats(m * k);
  std::vector<float> c(static_cast<size_t>(m * n));
  Weights weights(n, k, kind, cold);
  Arena scratch(gemm_scratch_bytes(m, n, k, 1));
  const KernelContext cx{level, nullptr, &scratch, kind.rounding};
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
    share.push_back(speed.back() / (int8 ? peak_int8(level) : peak(level, dot)));
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
    bench::g_sink += c[0];
  }
  const char* roundings[] = {"-", "bf16", "f16"};
  fmt::print("{:<11} {:<9} {:<5} {:>4} × {:>5} × {:>5}{} {:8.1f} GFLOP/s {:5.2f} of peak  {:6.1f} GB/s",
             to_string(level), to_string(dtype), int8 ? "int8" : roundings[static_cast<int>(kind.rounding)],
             m, n, k, cold ? " cold" : "     ", median(speed), median(share), median(gbps));
  if (!ratio.empty()) fmt::print("  {:5.2f} × OpenBLAS", median(ratio));
  fmt::print("\n");
}

void bench_level(CpuLevel level, int64_t only, const std::string& type) {
  for (const Kind kind : {Kind{DType::kF32, Rounding::kNone},
                          {DType::kBf16, Rounding::kBf16},
                          {DType::kBf16, Rounding::kNone},
                          {DType::kF16, Rounding::kF16},
                          {DType::kI8, Rounding::kNone, Inputs::kInt8},
                          {DType::kF8E4M3, Rounding::kBf16},
                          {DType::kF8E4M3, Rounding::kNone},
                          {DType::kI8, Rounding::kBf16}}) {
    if (!type.empty() && type != to_string(kind.dtype)) continue;
    for (const int64_t m : {1, 4, 8, 16, 64, 512}) {
      if (only == 0 || only == m) bench_shape(level, kind, m, 1024, 1024, false);
    }
    for (const int64_t m : {1, 4, 16}) {
      if (only == 0 || only == m) bench_shape(level, kind, m, 2048, 2048, true);
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
  bench::read_gbps(buffer);
  const double read = bench::read_gbps(buffer);
  fmt::print("{}: one core reads {:.1f} GB/s; shares are of peaks measured between the products\n",
             cpu_model_name(), read);
  for (const CpuLevel level : available_cpu_levels()) {
    if (level == CpuLevel::kPortable || (argc > 1 && to_string(level) != std::string(argv[1]))) continue;
    bench_level(level, argc > 2 ? std::atoi(argv[2]) : 0, argc > 3 ? argv[3] : "");
  }
  return bench::g_sink == 0.12345f ? 1 : 0;
}
