#include "load/shard.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <set>
#include <string_view>

#include "base/error.h"
#include "base/log.h"
#include "load/config.h"

namespace duet {

namespace {

// Why `ranks` does not work; empty when it does.
std::string objection(const ModelConfig& c, int64_t ranks, bool expert_parallel) {
  const auto does_not_divide = [&](const char* field, int64_t value) {
    return fmt::format("{} ranks do not divide {} = {}", ranks, field, value);
  };
  const auto leaves_empty = [&](const char* field, int64_t value) {
    return fmt::format("{} ranks leave some rank nothing of {} = {}", ranks, field, value);
  };
  if (ranks < 1) return "there must be at least one rank";
  if (c.num_attention_heads % ranks != 0)
    return does_not_divide("num_attention_heads", c.num_attention_heads);
  const int64_t kv_heads = c.num_key_value_heads;  // fewer than ranks are replicated
  if (!c.latent_attention() && kv_heads % ranks != 0 && ranks % kv_heads != 0)
    return fmt::format("{}, nor does num_key_value_heads divide them",
                       does_not_divide("num_key_value_heads", kv_heads));
  const int64_t moe_layers = c.num_moe_layers();
  if (moe_layers > 0 && expert_parallel && c.n_routed_experts % ranks != 0) {
    return does_not_divide("n_routed_experts", c.n_routed_experts);
  }
  if (moe_layers > 0 && !expert_parallel && ranks > c.moe_intermediate_size) {
    return leaves_empty("moe_intermediate_size", c.moe_intermediate_size);
  }
  if (moe_layers < c.num_hidden_layers && ranks > c.intermediate_size) {
    return leaves_empty("intermediate_size", c.intermediate_size);
  }
  if (ranks > c.vocab_size) return leaves_empty("vocab_size", c.vocab_size);
  return "";
}

}  // namespace

Slice shard(int64_t total, int rank, int ranks) {
  DUET_CHECK(total >= 0 && ranks >= 1 && rank >= 0 && rank < ranks);
  return {total * rank / ranks, total * (rank + 1) / ranks};
}

std::vector<int> valid_rank_counts(const ModelConfig& config, bool expert_parallel) {
  std::vector<int> counts;
  for (int ranks = 1; ranks <= config.num_attention_heads; ++ranks) {
    if (config.num_attention_heads % ranks == 0 && objection(config, ranks, expert_parallel).empty()) {
      counts.push_back(ranks);
    }
  }
  return counts;
}

void check_rank_count(const ModelConfig& config, int ranks, bool expert_parallel) {
  const std::string why = objection(config, ranks, expert_parallel);
  if (why.empty()) return;
  throw Error(ErrorKind::kInvalidArgument,
              fmt::format("{}: {}{}; rank counts that work: {}", config.file, why,
                          expert_parallel ? " (whole experts per rank)" : "",
                          fmt::join(valid_rank_counts(config, expert_parallel), ", ")));
}

int64_t layer_of_tensor(const std::string& name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return -1;
  const char* const begin = name.data() + kPrefix.size();
  const char* const end = name.data() + name.size();
  int64_t layer = -1;
  const auto [rest, error] = std::from_chars(begin, end, layer);
  return error == std::errc{} && layer >= 0 && rest != end && *rest == '.' ? layer : -1;
}

TensorAudit audit_tensors(const std::vector<std::string>& names, int64_t num_hidden_layers,
                          const std::unordered_set<std::string>& expected) {
  TensorAudit audit;
  std::set<int64_t> beyond;
  for (const std::string& name : names) {
    const int64_t layer = layer_of_tensor(name);
    if (layer >= num_hidden_layers) {
      beyond.insert(layer);
      ++audit.mtp_tensors;
    } else if (!expected.contains(name) && !name.ends_with("rotary_emb.inv_freq")) {
      audit.unexpected.push_back(name);
    }
  }
  audit.mtp_layers = static_cast<int64_t>(beyond.size());
  std::sort(audit.unexpected.begin(), audit.unexpected.end());
  return audit;
}

void log_audit(const TensorAudit& audit) {
  if (audit.mtp_layers > 0) {
    log_info("skipped {} multi-token-prediction layer(s) of the checkpoint ({} tensors)", audit.mtp_layers,
             audit.mtp_tensors);
  }
  if (!audit.unexpected.empty()) {
    constexpr size_t kShown = 5;
    const size_t shown = std::min(kShown, audit.unexpected.size());
    log_warning(
        "the checkpoint has {} tensor(s) that this model does not use: {}{}", audit.unexpected.size(),
        fmt::join(audit.unexpected.begin(), audit.unexpected.begin() + static_cast<ptrdiff_t>(shown), ", "),
        shown < audit.unexpected.size() ? ", …" : "");
  }
}

}  // namespace duet
