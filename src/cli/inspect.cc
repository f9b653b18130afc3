#include "cli/inspect.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "cli/report.h"
#include "duet/llm.h"
#include "engine/options.h"
#include "engine/rank_group.h"
#include "load/checkpoint.h"
#include "load/config.h"
#include "load/shard.h"

namespace duet {
namespace {

using nlohmann::ordered_json;

ordered_json checkpoint_json(const LlmOptions& options, const ModelConfig& config) {
  std::error_code ignored;
  if (options.load_format == "dummy" || !std::filesystem::is_directory(options.model, ignored))
    return nullptr;
  bool any = false;
  for (const auto& entry : std::filesystem::directory_iterator(options.model, ignored)) {
    any = any || entry.path().string().find(".safetensors") != std::string::npos;
  }
  if (!any) return nullptr;
  const Checkpoint checkpoint = Checkpoint::open(options.model);
  std::map<std::string, int64_t> dtypes;
  std::map<std::string, bool> files;
  int64_t mtp_bytes = 0;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    dtypes[tensor.dtype_name] += static_cast<int64_t>(tensor.bytes);
    files[tensor.file] = true;
    if (layer_of_tensor(tensor.name) >= config.num_hidden_layers)
      mtp_bytes += static_cast<int64_t>(tensor.bytes);
  }
  return {{"bytes", checkpoint.total_bytes()},
          {"files", files.size()},
          {"tensors", checkpoint.tensors().size()},
          {"bytes_by_dtype", dtypes},
          {"bytes_of_skipped_mtp_layers", mtp_bytes}};
}

ordered_json parameters_json(const ModelConfig& config) {
  const ParameterCounts n = count_parameters(config);
  return {{"total", n.total()},
          {"active_per_token", n.active},
          {"embedding", n.embedding},
          {"attention", n.attention},
          {"dense_mlp", n.dense_mlp},
          {"routed_experts", n.routed_experts},
          {"shared_experts", n.shared_experts},
          {"gates", n.gates},
          {"norms", n.norms}};
}

ordered_json architecture_json(const ModelConfig& c) {
  ordered_json facts = {{"architecture", to_string(c.architecture)},
                        {"dtype", to_string(c.dtype)},
                        {"quantization", c.quant.layout},
                        {"layers", c.num_hidden_layers},
                        {"moe_layers", c.num_moe_layers()},
                        {"mtp_layers_skipped", c.num_nextn_predict_layers},
                        {"hidden_size", c.hidden_size},
                        {"vocab_size", c.vocab_size},
                        {"max_position_embeddings", c.max_position_embeddings},
                        {"heads", c.num_attention_heads},
                        {"rope", to_string(c.rope.type)},
                        {"routed_experts", c.n_routed_experts}};
  if (c.latent_attention()) {
    facts["q_lora_rank"] = c.q_lora_rank;
    facts["kv_lora_rank"] = c.kv_lora_rank;
    facts["qk_rope_head_dim"] = c.qk_rope_head_dim;
  } else {
    facts["kv_heads"] = c.num_key_value_heads;
    facts["head_dim"] = c.head_dim;
  }
  if (c.n_routed_experts > 0) {
    facts["experts_per_token"] = c.num_experts_per_tok;
    facts["shared_experts"] = c.n_shared_experts;
    facts["expert_groups"] = c.n_group;
    facts["groups_per_token"] = c.topk_group;
    facts["gate"] = fmt::format("{} {}", to_string(c.scoring_func), to_string(c.topk_method));
  }
  return facts;
}

ordered_json plan_json(const RankOptions& options, const ModelConfig& config) {
  try {
    const MemoryPlan plan = plan_memory(options, config);
    return {{"weights", plan.weights},
            {"kv_cache", plan.kv_cache},
            {"kv_bytes_per_token", plan.kv_bytes_per_token},
            {"kv_tokens", plan.kv_blocks * options.block_size},
            {"activations", plan.activations},
            {"scratch", plan.scratch},
            {"total", plan.total()}};
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kResourceExhausted) throw;
    return {{"does_not_fit", error.what()}};
  }
}

std::string size_of(const ordered_json& bytes) {
  return human_bytes(bytes.get<double>());
}

std::string list_of(const ordered_json& numbers) {
  return fmt::format("{}", fmt::join(numbers.get<std::vector<int>>(), ", "));
}

std::string attention_kind(const ordered_json& a) {
  if (a.contains("kv_heads")) {
    return fmt::format("{} of keys and values, head size {}", a["kv_heads"].get<int64_t>(),
                       a["head_dim"].get<int64_t>());
  }
  return fmt::format(
      "latent {} + rope {}{}", a["kv_lora_rank"].get<int64_t>(), a["qk_rope_head_dim"].get<int64_t>(),
      a["q_lora_rank"] > 0 ? fmt::format(", query latent {}", a["q_lora_rank"].get<int64_t>()) : "");
}

std::string architecture_text(const ordered_json& a) {
  std::string text = fmt::format(
      "{}, {}{}\n"
      "  layers        {} ({} with experts{})\n"
      "  hidden        {}, vocabulary {}, positions {} (rope {})\n"
      "  attention     {} heads, {}\n",
      a["architecture"].get<std::string>(), a["dtype"].get<std::string>(),
      a["quantization"] == "" ? "" : fmt::format(", weights as {}", a["quantization"].get<std::string>()),
      a["layers"].get<int64_t>(), a["moe_layers"].get<int64_t>(),
      a["mtp_layers_skipped"] > 0 ? fmt::format("; {} layers of multi-token prediction are skipped",
                                                a["mtp_layers_skipped"].get<int64_t>())
                                  : "",
      a["hidden_size"].get<int64_t>(), a["vocab_size"].get<int64_t>(),
      a["max_position_embeddings"].get<int64_t>(), a["rope"].get<std::string>(), a["heads"].get<int64_t>(),
      attention_kind(a));
  if (a["routed_experts"] > 0) {
    text += fmt::format(
        "  experts       {} routed ({} groups), {} per token from {} groups, {} shared; gate {}\n",
        a["routed_experts"].get<int64_t>(), a["expert_groups"].get<int64_t>(),
        a["experts_per_token"].get<int64_t>(), a["groups_per_token"].get<int64_t>(),
        a["shared_experts"].get<int64_t>(), a["gate"].get<std::string>());
  }
  return text;
}

std::string parameters_text(const ordered_json& p) {
  std::string text =
      fmt::format("parameters      {}, {} active per token\n", human_count(p["total"].get<double>()),
                  human_count(p["active_per_token"].get<double>()));
  for (const auto& [name, value] : p.items()) {
    if (name == "total" || name == "active_per_token" || value == 0) continue;
    text += fmt::format("  {:<15} {:>12}  {:>5.1f} %\n", name, human_count(value.get<double>()),
                        100 * value.get<double>() / p["total"].get<double>());
  }
  return text;
}

std::string plan_text(const ordered_json& facts) {
  const ordered_json& plan = facts["per_rank"];
  std::string text =
      fmt::format("one of {} rank{}\n", facts["ranks"].get<int>(), facts["ranks"] == 1 ? "" : "s");
  if (plan.contains("does_not_fit")) {
    return text + fmt::format("  does not fit  {}\n", plan["does_not_fit"].get<std::string>());
  }
  text += fmt::format(
      "  weights       {}\n"
      "  KV cache      {} ({} tokens, {} bytes each)\n"
      "  activations   {} (for {} tokens, worst case of routing)\n"
      "  scratch       {}\n"
      "  total         {}\n",
      size_of(plan["weights"]), size_of(plan["kv_cache"]), plan["kv_tokens"].get<int64_t>(),
      plan["kv_bytes_per_token"].get<int64_t>(), size_of(plan["activations"]),
      facts["max_num_batched_tokens"].get<int64_t>(), size_of(plan["scratch"]), size_of(plan["total"]));
  return text;
}

}  // namespace

int64_t ParameterCounts::total() const {
  return embedding + attention + dense_mlp + routed_experts + shared_experts + gates + norms;
}

ParameterCounts count_parameters(const ModelConfig& c) {
  ParameterCounts n;
  const int64_t layers = c.num_hidden_layers;
  const int64_t moe_layers = c.num_moe_layers();
  const int64_t heads = c.num_attention_heads;
  n.embedding = c.vocab_size * c.hidden_size * (c.tie_word_embeddings ? 1 : 2);
  int64_t attention_norms = 0;
  if (c.latent_attention()) {
    const int64_t q = c.q_lora_rank > 0 ? c.q_lora_rank * (c.hidden_size + heads * c.qk_head_dim())
                                        : c.hidden_size * heads * c.qk_head_dim();
    const int64_t kv = (c.kv_lora_rank + c.qk_rope_head_dim) * c.hidden_size +
                       heads * (c.qk_nope_head_dim + c.v_head_dim) * c.kv_lora_rank;
    n.attention = layers * (q + kv + heads * c.v_head_dim * c.hidden_size);
    attention_norms = c.q_lora_rank + c.kv_lora_rank;
  } else {
    const int64_t qkv = (heads + 2 * c.num_key_value_heads) * c.head_dim;
    n.attention = layers * (qkv * (c.hidden_size + (c.qkv_bias ? 1 : 0)) +
                            c.hidden_size * (heads * c.head_dim + (c.o_bias ? 1 : 0)));
    attention_norms = c.qk_norm ? 2 * c.head_dim : 0;
  }
  n.dense_mlp = (layers - moe_layers) * 3 * c.hidden_size * c.intermediate_size;
  const int64_t expert = 3 * c.hidden_size * c.moe_intermediate_size;
  n.routed_experts = moe_layers * c.n_routed_experts * expert;
  n.shared_experts = moe_layers * c.n_shared_experts * expert;
  const int64_t bias = c.topk_method == TopkMethod::kNoauxTc ? c.n_routed_experts : 0;
  n.gates = moe_layers * (c.n_routed_experts * c.hidden_size + bias);
  n.norms = layers * (2 * c.hidden_size + attention_norms) + c.hidden_size;
  n.active = n.total() - n.routed_experts + moe_layers * c.num_experts_per_tok * expert;
  return n;
}

ordered_json inspect_json(const LlmOptions& options) {
  // A config.json alone is what dummy weights are made from; no flag is needed to look at one.
  LlmOptions how = options;
  std::error_code ignored;
  if (std::filesystem::is_regular_file(options.model, ignored)) how.load_format = "dummy";
  const ModelConfig config = read_model_config(how);
  const RankOptions ranks = rank_options(how, config.vocab_size);
  ordered_json facts;
  facts["model"] = options.model;
  facts["config"] = architecture_json(config);
  facts["parameters"] = parameters_json(config);
  facts["checkpoint"] = checkpoint_json(how, config);
  facts["valid_ranks"] = valid_rank_counts(config, false);
  facts["valid_ranks_expert_parallel"] = valid_rank_counts(config, true);
  facts["ranks"] = ranks.ranks;
  facts["max_num_batched_tokens"] = ranks.max_batched_tokens;
  check_rank_count(config, ranks.ranks, ranks.expert_parallel);
  facts["per_rank"] = plan_json(ranks, config);
  return facts;
}

std::string inspect_text(const ordered_json& facts) {
  std::string text = architecture_text(facts["config"]) + parameters_text(facts["parameters"]);
  const ordered_json& checkpoint = facts["checkpoint"];
  if (checkpoint.is_null()) {
    text += "checkpoint      none (config only)\n";
  } else {
    text += fmt::format("checkpoint      {} in {} files, {} tensors\n", size_of(checkpoint["bytes"]),
                        checkpoint["files"].get<int64_t>(), checkpoint["tensors"].get<int64_t>());
    for (const auto& [dtype, bytes] : checkpoint["bytes_by_dtype"].items()) {
      text += fmt::format("  {:<13} {}\n", dtype, size_of(bytes));
    }
    if (checkpoint["bytes_of_skipped_mtp_layers"] > 0) {
      text += fmt::format("  not loaded    {} (multi-token prediction)\n",
                          size_of(checkpoint["bytes_of_skipped_mtp_layers"]));
    }
  }
  text += fmt::format("possible ranks  {}\n", list_of(facts["valid_ranks"]));
  if (facts["config"]["routed_experts"] > 0) {
    text += fmt::format("  with whole experts: {}\n", list_of(facts["valid_ranks_expert_parallel"]));
  }
  return text + plan_text(facts);
}

}  // namespace duet
