// Attention beside the matrix products it is made of: time, arithmetic rate, and the rate as a share of
// what gemm reaches at 512 × 1024 × 1024 in the same run; for decoding the cache's bytes per second.
// Latent attention in DeepSeek-V2-Lite's sizes, grouped-query attention in those of llama-720m.json.
//   attention_bench [--threads N] [--seconds S per case] [--only TEXT in a case's name]
#include <fmt/format.h>
#include <time.h>

#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/ops.h"

namespace duet {
namespace {

constexpr int64_t kPositions = 8192;
const GqaShape kGrouped{.heads = 16, .kv_heads = 8, .head_dim = 128, .scale = 0.088f};
const MlaShape kShape{.heads = 16, .nope = 128, .rope = 64, .v = 128, .lora = 512, .scale = 0.1f};

std::vector<float> random_floats(int64_t n, uint32_t seed) {
  std::mt19937 gen(seed);
  std::uniform_real_distribution<float> dist(-0.1f, 0.1f);
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = dist(gen);
  return v;
}

/// With one thread its CPU time (on a busy machine the clock on the wall measures the neighbours),
/// else the wall's.
double now(int threads) {
  timespec t{};
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

/// Best of several runs: a neighbour on the machine only ever makes a run slower.
template <typename F>
double seconds_of(double budget, int threads, F f) {
  double best = 1e9, spent = 0.0;
  for (int i = 0; i < 3 || spent < budget; ++i) {
    const double start = now(threads);
    f();
    const double t = now(threads) - start;
    if (i > 0) best = std::min(best, t);
    spent += t;
  }
  return best;
}

struct Bench {
  CpuLevel level;
  Rounding rounding;
  DType dtype;
  int threads;
  double budget;
  ThreadPool pool;
  Arena arena;
  KernelContext cx;
  MlaWeights weights;
  std::vector<std::byte> bytes, grouped_bytes;
  std::vector<int32_t> table;
  PagedCache cache, grouped_cache;
  double gemm_rate = 0.0;
  const char* only = "";

  Bench(CpuLevel l, Rounding r, int n, double seconds)
      : level(l),
        rounding(r),
        dtype(r == Rounding::kBf16 ? DType::kBf16 : DType::kF32),
        threads(n),
        budget(seconds),
        pool(n),
        arena(std::max({mla_scratch_bytes(kShape, n), gqa_scratch_bytes(kGrouped, n),
                        gemm_scratch_bytes(512, 1024, 1024, n)})),
        cx{l, &pool, &arena, r} {
    const int64_t rows = kShape.heads * (kShape.nope + kShape.v);
    const auto kv_b = random_floats(rows * kShape.lora, 1);
    weights = pack_mla(kShape, {kv_b.data(), DType::kF32, rows, kShape.lora, kShape.lora, 1}, dtype);
    const auto latents = random_floats(kPositions * (kShape.lora + kShape.rope), 2);
    bytes.resize(latents.size() * dtype_bytes(dtype));
    convert_from_f32(latents.data(), dtype, bytes.data(), latents.size());
    const auto keys_values = random_floats(kPositions * 2 * kGrouped.kv_heads * kGrouped.head_dim, 7);
    grouped_bytes.resize(keys_values.size() * dtype_bytes(dtype));
    convert_from_f32(keys_values.data(), dtype, grouped_bytes.data(), keys_values.size());
    table.resize(kPositions / 16);
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(3));
    cache = {bytes.data(), dtype, 16};
    grouped_cache = {grouped_bytes.data(), dtype, 16};
    const auto w = random_floats(1024 * 1024, 4), a = random_floats(512 * 1024, 5);
    const PackedMatrix packed({w.data(), DType::kF32, 1024, 1024, 1024, 1}, dtype);
    std::vector<float> c(512 * 1024);
    const double t = seconds_of(budget, threads, [&] {
      gemm(cx, {a.data(), 512, 1024}, packed.view(), {c.data(), 512, 1024});
    });
    gemm_rate = 2.0 * 512 * 1024 * 1024 / t;
  }

  void run(const char* name, int64_t rows, int64_t spans, int64_t start, AttentionForm form) {
    if (!std::strstr(name, only)) return;
    const int64_t q_cols = kShape.heads * (kShape.nope + kShape.rope), out_cols = kShape.heads * kShape.v;
    const auto q = random_floats(rows * spans * q_cols, 6);
    std::vector<float> out(static_cast<size_t>(rows * spans * out_cols));
    std::vector<AttentionSpan> list;
    for (int64_t i = 0; i < spans; ++i) list.push_back({i * rows, rows, start, form, table.data()});
    const double t = seconds_of(budget, threads, [&] {
      mla_attention(cx, kShape, weights, {q.data(), rows * spans, q_cols}, cache, list,
                    {out.data(), rows * spans, out_cols});
    });
    // Only useful arithmetic counts: the causal triangle, one expansion per key.
    const double context = static_cast<double>(start + rows), h = kShape.heads;
    const double seen =
        static_cast<double>(rows) * (static_cast<double>(start) + (static_cast<double>(rows) + 1) / 2);
    const double per_score = form == AttentionForm::kExpanded ? kShape.nope + kShape.rope + kShape.v
                                                              : 2 * kShape.lora + kShape.rope;
    const double projected = form == AttentionForm::kExpanded ? context : static_cast<double>(rows);
    const double flops = 2.0 * static_cast<double>(spans) * h *
                         (seen * per_score + projected * kShape.lora * (kShape.nope + kShape.v));
    const double cache_bytes = static_cast<double>(spans * rows) * context * (kShape.lora + kShape.rope) *
                               static_cast<double>(dtype_bytes(dtype));
    print(name, t, flops, form == AttentionForm::kAbsorbed ? cache_bytes : 0);
  }

  void run_grouped(const char* name, int64_t rows, int64_t spans, int64_t start) {
    if (!std::strstr(name, only)) return;
    const GqaShape& s = kGrouped;
    const int64_t cols = s.heads * s.head_dim;
    const auto q = random_floats(rows * spans * cols, 6);
    std::vector<float> out(q.size());
    std::vector<AttentionSpan> list;
    for (int64_t i = 0; i < spans; ++i)
      list.push_back({i * rows, rows, start, AttentionForm::kExpanded, table.data()});
    const double t = seconds_of(budget, threads, [&] {
      gqa_attention(cx, s, {q.data(), rows * spans, cols}, grouped_cache, list,
                    {out.data(), rows * spans, cols});
    });
    const double seen =
        static_cast<double>(rows) * (static_cast<double>(start) + (static_cast<double>(rows) + 1) / 2);
    const double flops = 4.0 * static_cast<double>(spans * cols) * seen;
    const double cache_bytes = static_cast<double>(spans * (start + rows) * 2 * s.kv_heads * s.head_dim) *
                               static_cast<double>(dtype_bytes(dtype));
    print(name, t, flops, rows == 1 ? cache_bytes : 0);
  }

  void print(const char* name, double t, double flops, double cache_bytes) const {
    fmt::print("| {:10} | {:8} | {:28} | {:9.3f} | {:7.1f} | {:5.0f} % |", to_string(level), to_string(dtype),
               name, t * 1e3, flops / t * 1e-9, 100.0 * flops / t / gemm_rate);
    if (cache_bytes > 0) fmt::print(" {:6.1f} |", cache_bytes / t * 1e-9);
    fmt::print("\n");
  }
};

}  // namespace
}  // namespace duet

int main(int argc, char** argv) {
  using namespace duet;
  int threads = 1;
  double seconds = 0.3;
  const char* only = "";
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!std::strcmp(argv[i], "--threads")) threads = std::max(1, std::atoi(argv[i + 1]));
    if (!std::strcmp(argv[i], "--seconds")) seconds = std::atof(argv[i + 1]);
    if (!std::strcmp(argv[i], "--only")) only = argv[i + 1];
  }
  fmt::print(
      "{}, {} thread(s), latent: heads 16, nope 128, rope 64, v 128, lora 512; "
      "grouped: heads 16 on 8, head size 128\n",
      cpu_model_name(), threads);
  fmt::print("| level | weights, cache | case | ms | GFLOP/s | of gemm | GB/s of cache |\n|-|-|-|-|-|-|-|\n");
  for (const CpuLevel level : available_cpu_levels()) {
    if (level == CpuLevel::kPortable && seconds < 1.0) continue;  // slow and of little interest
    for (const Rounding rounding : {Rounding::kNone, Rounding::kBf16}) {
      Bench b(level, rounding, threads, seconds);
      b.only = only;
      fmt::print("| {:10} | {:8} | gemm 512 x 1024 x 1024 | | {:.1f} | |\n", to_string(level),
                 to_string(b.dtype), b.gemm_rate * 1e-9);
      b.run("prefill 512", 512, 1, 0, AttentionForm::kExpanded);
      b.run("prefill 512 after 3584", 512, 1, 3584, AttentionForm::kExpanded);
      b.run("prefill 16 x 32", 32, 16, 0, AttentionForm::kExpanded);
      b.run("decode 1 at 4095", 1, 1, 4095, AttentionForm::kAbsorbed);
      b.run("decode 16 at 1023", 1, 16, 1023, AttentionForm::kAbsorbed);
      b.run_grouped("grouped, prefill 512", 512, 1, 0);
      b.run_grouped("grouped, prefill 512 aft. 3584", 512, 1, 3584);
      b.run_grouped("grouped, prefill 16 x 32", 32, 16, 0);
      b.run_grouped("grouped, decode 1 at 4095", 1, 1, 4095);
      b.run_grouped("grouped, decode 16 at 1023", 1, 16, 1023);
    }
  }
  return 0;
}
