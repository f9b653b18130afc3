#include "engine/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <utility>

#include "base/error.h"
#include "comm/mpi_transport.h"
#include "comm/shaped_transport.h"
#include "engine/cost_cache.h"

namespace duet {

namespace {

template <typename T>
using Choices = std::initializer_list<std::pair<const char*, T>>;

template <typename T>
T choose(const std::string& value, const char* flag, Choices<T> choices) {
  std::string names;
  for (const auto& [name, result] : choices) {
    if (value == name) return result;
    names += names.empty() ? name : fmt::format(", {}", name);
  }
  throw Error(ErrorKind::kInvalidArgument,
              fmt::format("{} is \"{}\", must be one of: {}", flag, value, names));
}

void at_least(int64_t value, int64_t least, const char* flag) {
  if (value < least)
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{} is {}, must be at least {}", flag, value, least));
}

// Rows of one step whose logits are wanted. For all of them: no more than half a GiB of float32, so
// that a large vocabulary cuts steps short instead of filling the memory.
int64_t logits_rows(const LlmOptions& o, int64_t vocab_size) {
  if (!o.all_logits) return std::min(o.max_num_seqs, o.max_num_batched_tokens);
  constexpr int64_t kMaxBytes = int64_t{512} << 20;
  const int64_t rows = kMaxBytes / (std::max<int64_t>(vocab_size, 1) * static_cast<int64_t>(sizeof(float)));
  return std::clamp<int64_t>(rows, 1, o.max_num_batched_tokens);
}

}  // namespace

int64_t parse_bytes(const std::string& text, const char* flag) {
  constexpr std::pair<const char*, double> kUnits[] = {
      {"", 1},         {"B", 1},      {"kB", 1e3},     {"KB", 1e3},     {"MB", 1e6},
      {"GB", 1e9},     {"TB", 1e12},  {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30},
      {"TiB", 0x1p40}, {"k", 0x1p10}, {"K", 0x1p10},   {"m", 0x1p20},   {"M", 0x1p20},
      {"g", 0x1p30},   {"G", 0x1p30}, {"t", 0x1p40},   {"T", 0x1p40}};
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string unit(end, text.data() + text.size());
  unit.erase(0, unit.find_first_not_of(' '));
  if (error == std::errc() && number > 0 && std::isfinite(number))
    for (const auto& [name, factor] : kUnits)
      if (unit == name && number * factor >= 1 && number * factor < 0x1p62)
        return static_cast<int64_t>(number * factor);
  throw Error(
      ErrorKind::kInvalidArgument,
      fmt::format("{} is \"{}\", must be a size above 0 such as 4GiB, 512MiB or 2000000000", flag, text));
}

DboMode parse_dbo(const std::string& text) {
  return choose<DboMode>(text, "--dbo",
                         {{"off", DboMode::kOff}, {"on", DboMode::kOn}, {"auto", DboMode::kAuto}});
}

SplitPolicy split_policy(const LlmOptions& o) {
  SplitPolicy policy;
  policy.dbo = parse_dbo(o.dbo);
  at_least(o.micro_batches, 0, "--micro-batches");
  constexpr int kMost = 64;
  if (o.micro_batches > kMost)
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("--micro-batches is {}, must be at most {}", o.micro_batches, kMost));
  policy.micro_batches = o.micro_batches;
  at_least(o.dbo_prefill_token_threshold, 0, "--dbo-prefill-token-threshold");
  at_least(o.dbo_decode_token_threshold, 0, "--dbo-decode-token-threshold");
  policy.thresholds = {o.dbo_prefill_token_threshold, o.dbo_decode_token_threshold};
  if (!(o.dbo_imbalance >= 0.0 && o.dbo_imbalance <= 1.0))
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("--dbo-imbalance is {}, must be in [0, 1]", o.dbo_imbalance));
  policy.imbalance = o.dbo_imbalance;
  at_least(o.split_at, 0, "--split-at");
  policy.split_at = o.split_at;
  return policy;
}

RankOptions rank_options(const LlmOptions& o, int64_t vocab_size) {
  RankOptions r;
  r.model = o.model;
  r.load_format = choose<LoadFormat>(o.load_format, "--load-format",
                                     {{"auto", LoadFormat::kAuto}, {"dummy", LoadFormat::kDummy}});
  r.dummy_seed = o.dummy_seed;
  r.dtype = choose<ComputeDtype>(o.dtype, "--dtype",
                                 {{"auto", ComputeDtype::kAuto},
                                  {"float32", ComputeDtype::kFloat32},
                                  {"bfloat16", ComputeDtype::kBfloat16},
                                  {"half", ComputeDtype::kHalf},
                                  {"float", ComputeDtype::kFloat32},
                                  {"float16", ComputeDtype::kHalf}});
  r.quantization = choose<Quantization>(o.quantization, "--quantization",
                                        {{"", Quantization::kAsStored}, {"w8a8", Quantization::kW8A8}});
  r.int8_head = !o.float_head;
  r.kv_cache = choose<KvCacheDtype>(o.kv_cache_dtype, "--kv-cache-dtype",
                                    {{"auto", KvCacheDtype::kAuto}, {"int8", KvCacheDtype::kInt8}});
  at_least(o.tensor_parallel_size, 1, "--tensor-parallel-size");
  r.ranks = o.tensor_parallel_size;
  const std::string backend = !o.distributed_executor_backend.empty() ? o.distributed_executor_backend
                              : launched_under_mpi()                  ? "mpi"
                                                                      : "threads";
  r.backend = choose<Backend>(backend, "--distributed-executor-backend",
                              {{"threads", Backend::kThreads}, {"mpi", Backend::kMpi}});
  r.comm_transport = choose<CommTransport>(
      o.comm_transport, "--comm-transport",
      {{"auto", CommTransport::kAuto}, {"mpi", CommTransport::kMpi}, {"tcp", CommTransport::kTcp}});
  at_least(o.threads, 0, "--threads");
  r.threads_per_rank = o.threads;
  r.expert_path =
      choose<ExpertPath>(o.expert_path, "--expert-path",
                         {{"all-reduce", ExpertPath::kAllReduce}, {"all-to-all", ExpertPath::kAllToAll}});
  r.expert_parallel = o.enable_expert_parallel || r.expert_path == ExpertPath::kAllToAll;
  r.wire = choose<DType>(o.comm_dtype, "--comm-dtype", {{"bf16", DType::kBf16}, {"f32", DType::kF32}});
  if (!o.link_bandwidth.empty() || !o.link_latency.empty()) {
    if (r.backend != Backend::kThreads)
      throw Error(
          ErrorKind::kInvalidArgument,
          "--link-bandwidth and --link-latency shape the link between thread ranks; MPI ranks use the "
          "network they have (shape it with tc)");
    LinkShape link{std::numeric_limits<double>::infinity(), 0};
    if (!o.link_bandwidth.empty()) link.bytes_per_second = parse_bandwidth(o.link_bandwidth);
    if (!o.link_latency.empty()) link.latency_ns = parse_duration(o.link_latency);
    r.link = link;
  }
  at_least(o.max_num_batched_tokens, 1, "--max-num-batched-tokens");
  at_least(o.max_num_seqs, 1, "--max-num-seqs");
  at_least(o.max_model_len, 0, "--max-model-len");
  at_least(o.block_size, 1, "--block-size");
  r.max_batched_tokens = o.max_num_batched_tokens;
  r.max_logits_rows = logits_rows(o, vocab_size);
  r.max_model_len = o.max_model_len;
  r.block_size = o.block_size;
  if (!o.kv_cache_memory.empty()) r.kv_cache_bytes = parse_bytes(o.kv_cache_memory, "--kv-cache-memory");
  const SplitPolicy policy = split_policy(o);
  // A split without a second micro-batch still has two parts.
  const int most = policy.micro_batches > 0 ? policy.micro_batches : kMostMicroBatches;
  // A split without a second micro-batch still has two parts. One rank has nothing to hide: auto never
  // splits.
  r.max_micro_batches = policy.split_at > 0                            ? std::max(2, policy.micro_batches)
                        : policy.dbo == DboMode::kOff                  ? 1
                        : policy.dbo == DboMode::kAuto && r.ranks == 1 ? 1
                                                                       : most;
  r.cost_cache = cost_cache_directory(o.dbo_cost_cache);
  r.trace = o.trace;
  return r;
}

ModelConfig read_model_config(const LlmOptions& o) {
  if (o.model.empty())
    throw Error(ErrorKind::kInvalidArgument, "no model given: name a Hugging Face directory");
  std::error_code ignored;
  if (o.load_format != "dummy" || !std::filesystem::is_regular_file(o.model, ignored))
    return load_config(o.model);
  std::ifstream in(o.model, std::ios::binary);
  if (!in) throw Error(ErrorKind::kNotFound, fmt::format("{}: cannot be read", o.model));
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  return parse_config(text, o.model);
}

}  // namespace duet
