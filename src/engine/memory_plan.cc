// The memory plan: what one rank takes, before a byte is loaded. Too little memory is an error that
// says what would fit.
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "base/error.h"
#include "comm/communicator.h"
#include "engine/placement.h"
#include "engine/rank_group.h"
#include "model/model.h"

namespace duet {

namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

// Memory this machine can still give, a container's limit included.
int64_t available_bytes() {
  int64_t available = INT64_MAX;
  std::ifstream meminfo("/proc/meminfo");
  for (std::string key, unit; meminfo >> key;) {
    int64_t kib = 0;
    meminfo >> kib;
    std::getline(meminfo, unit);
    if (key == "MemAvailable:") available = kib * 1024;
  }
  std::ifstream limit_file("/sys/fs/cgroup/memory.max"), used_file("/sys/fs/cgroup/memory.current");
  int64_t limit = 0, used = 0;
  if (limit_file >> limit && used_file >> used)
    available = std::min(available, std::max<int64_t>(limit - used, 0));
  return available;
}

// Tokens that a default cache holds: room for dozens of chats without filling a small machine.
constexpr int64_t kDefaultCacheTokens = 65536;

}  // namespace

MemoryPolicy memory_policy(const RankOptions& options, const ModelConfig& config) {
  return {resolve(options.dtype, config.dtype), options.quantization, options.int8_head, options.kv_cache};
}

MemoryPlan plan_memory(const RankOptions& options, const ModelConfig& config) {
  if (options.kv_cache == KvCacheDtype::kInt8 && !config.latent_attention()) {
    throw Error(ErrorKind::kUnsupported,
                fmt::format("--kv-cache-dtype int8 is for models with latent attention (kv_lora_rank in "
                            "config.json), which {} has not; leave the flag out",
                            config.file));
  }
  const int locals = local_ranks(options);
  BatchLimits limits;
  limits.max_rows = options.max_batched_tokens;
  limits.max_logits_rows = options.max_logits_rows;
  limits.vocab_size = config.vocab_size;
  limits.max_positions = options.max_model_len > 0 ? options.max_model_len : config.max_position_embeddings;
  limits.block_size = options.block_size;
  limits.max_micro_batches = options.max_micro_batches;
  if (limits.max_positions > config.max_position_embeddings) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("--max-model-len {}: {} has {} positions (max_position_embeddings)",
                            limits.max_positions, config.file, config.max_position_embeddings));
  }
  const ModelBytes bytes =
      model_bytes(config, memory_policy(options, config), options.expert_path, options.expert_parallel, 0,
                  options.ranks, resolve_threads(options), limits);
  MemoryPlan plan;
  plan.weights = bytes.weights;
  plan.activations = bytes.activations;
  plan.scratch =
      bytes.scratch + Communicator::staging_bytes(options.ranks, options.wire, bytes.max_collective_elements,
                                                  bytes.max_all_to_all_elements);
  plan.kv_bytes_per_token = bytes.kv_per_block / options.block_size;
  const int64_t available = available_bytes() / locals;
  const int64_t room = available - plan.weights - plan.activations - plan.scratch;
  const auto gib = [](int64_t b) { return static_cast<double>(b) / kGiB; };
  if (options.kv_cache_bytes > 0) {
    plan.kv_blocks = options.kv_cache_bytes / bytes.kv_per_block;
  } else {
    // Never more than half of what is left: a cache that fills the machine helps nobody.
    const int64_t wanted = std::max(kDefaultCacheTokens, options.max_model_len) / options.block_size + 1;
    plan.kv_blocks = std::min(wanted, std::max<int64_t>(room / 2 / bytes.kv_per_block, 0));
  }
  plan.kv_cache = plan.kv_blocks * bytes.kv_per_block;
  if (options.kv_cache_bytes > 0 && plan.kv_blocks < 1) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("--kv-cache-memory {}: one block of {} tokens takes {} bytes on a rank; give at "
                            "least that, or a smaller --block-size",
                            options.kv_cache_bytes, options.block_size, bytes.kv_per_block));
  }
  if (plan.total() > available || plan.kv_blocks < 1) {
    const int64_t per_row =
        std::max<int64_t>(plan.activations / std::max<int64_t>(options.max_batched_tokens, 1), 1);
    const int64_t rows_that_fit =
        (available - plan.weights - plan.scratch - bytes.kv_per_block * 64) / per_row;
    throw Error(
        ErrorKind::kResourceExhausted,
        fmt::format("a rank needs {:.2f} GiB (weights {:.2f}, KV cache {:.2f}, activations {:.2f}, scratch "
                    "{:.2f}) and {} rank(s) share "
                    "this machine, which has {:.2f} GiB for each. {}",
                    gib(plan.total()), gib(plan.weights), gib(plan.kv_cache), gib(plan.activations),
                    gib(plan.scratch), locals, gib(available),
                    plan.weights > available ? "Use more hosts or a narrower --dtype"
                    : rows_that_fit >= 1
                        ? fmt::format("It would fit with --max-num-batched-tokens {} --kv-cache-memory {}MiB",
                                      std::min(rows_that_fit, options.max_batched_tokens),
                                      std::max<int64_t>(
                                          (available - plan.weights - plan.scratch -
                                           std::min(rows_that_fit, options.max_batched_tokens) * per_row) >>
                                              20,
                                          1))
                        : "Use more hosts or fewer ranks on this one"));
  }
  if (options.max_model_len > 0 && plan.kv_blocks * options.block_size < options.max_model_len) {
    throw Error(ErrorKind::kResourceExhausted,
                fmt::format("the KV cache of {:.2f} GiB holds {} tokens, fewer than --max-model-len {}; set "
                            "--max-model-len {} or --kv-cache-memory {}MiB",
                            gib(plan.kv_cache), plan.kv_blocks * options.block_size, options.max_model_len,
                            plan.kv_blocks * options.block_size,
                            (options.max_model_len * plan.kv_bytes_per_token >> 20) + 1));
  }
  return plan;
}

}  // namespace duet
