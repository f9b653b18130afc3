// The experts of one DeepSeek-V2-Lite layer (64 experts of 2048 × 1408, six per token) on one core, bf16:
// GFLOP/s and the share of the core's peak, GB/s of expert weights and the share of a plain read.
//   ffn_bench [level]
#include <fmt/format.h>

#include <string>

#include "kernels/ops.h"
#include "peak.h"

namespace duet {
namespace {

constexpr int64_t kHidden = 2048;
constexpr int64_t kIntermediate = 1408;
constexpr int kExperts = 64;
constexpr int kTopK = 6;
constexpr int kRepeats = 7;

struct Layer {
  explicit Layer(DType dtype) {
    const std::vector<float> f = bench::random_floats(kHidden * kIntermediate);
    const WeightView in{f.data(), DType::kF32, kIntermediate, kHidden, kHidden, 1};
    const WeightView out{f.data(), DType::kF32, kHidden, kIntermediate, kIntermediate, 1};
    for (int e = 0; e < kExperts; ++e) experts.push_back(pack_mlp(in, in, out, dtype));
  }
  std::vector<MlpWeights> experts;
};

void bench_tokens(CpuLevel level, const Layer& layer, int64_t tokens, double read) {
  std::mt19937 gen(static_cast<uint32_t>(tokens));
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<int32_t> all(kExperts);
    for (int e = 0; e < kExperts; ++e) all[static_cast<size_t>(e)] = e;
    std::shuffle(all.begin(), all.end(), gen);
    ids.insert(ids.end(), all.begin(), all.begin() + kTopK);
  }
  const std::vector<float> gates(ids.size(), 0.1f);
  std::vector<int32_t> offsets(kExperts + 1), rows(ids.size());
  std::vector<float> weights(ids.size());
  const ExpertGroups groups = group_by_expert(ids.data(), gates.data(), tokens, kTopK, 0, kExperts,
                                              offsets.data(), rows.data(), weights.data());
  double bytes = 0;
  for (size_t e = 0; e < kExperts; ++e) {
    const bool used = offsets[e + 1] > offsets[e];
    if (used) bytes += static_cast<double>(layer.experts[e].gate_up.bytes() + layer.experts[e].down.bytes());
  }
  const std::vector<float> x = bench::random_floats(tokens * kHidden);
  std::vector<float> out(x.size());
  Arena scratch(experts_scratch_bytes(kHidden, kIntermediate, 1));
  const KernelContext cx{level, nullptr, &scratch, Rounding::kBf16};
  const double flops = static_cast<double>(ids.size()) * 6 * kHidden * kIntermediate;
  std::vector<double> speed, share, gbps;
  for (int r = 0; r < kRepeats; ++r) {
    const double s = bench::seconds_of([&] {
      experts(cx, ConstRows(x.data(), tokens, kHidden, kHidden), layer.experts, groups,
              Rows(out.data(), tokens, kHidden, kHidden));
    });
    speed.push_back(flops / s * 1e-9);
    share.push_back(speed.back() / bench::peak(level, level == CpuLevel::kAvx512Bf16));
    gbps.push_back(bytes / s * 1e-9);
    bench::g_sink += out[0];
  }
  fmt::print("{:<11} {:>4} tokens {:8.1f} GFLOP/s {:5.2f} of peak {:6.1f} GB/s {:5.2f} of a read\n",
             to_string(level), tokens, bench::median(speed), bench::median(share), bench::median(gbps),
             bench::median(gbps) / read);
}

}  // namespace
}  // namespace duet

int main(int argc, char** argv) {
  using namespace duet;
  AlignedBuffer buffer(size_t{256} << 20);
  std::fill_n(buffer.as<char>(), buffer.size(), 1);
  std::vector<double> reads;
  for (int i = 0; i < 5; ++i) reads.push_back(bench::read_gbps(buffer));
  const double read = bench::median(reads);
  fmt::print("{}: one core reads {:.1f} GB/s\n", cpu_model_name(), read);
  const Layer layer(DType::kBf16);
  for (const CpuLevel level : available_cpu_levels()) {
    if (level == CpuLevel::kPortable || (argc > 1 && to_string(level) != std::string(argv[1]))) continue;
    for (const int64_t tokens : {1, 4, 16, 64, 256}) bench_tokens(level, layer, tokens, read);
  }
  return bench::g_sink == 0.12345f ? 1 : 0;
}
