#include "engine/rank_hello.h"

#include <fmt/format.h>

#include <bit>
#include <cstring>
#include <vector>

#include "base/error.h"

namespace duet {

namespace {

struct Setting {
  const char* name;
  int64_t value;
  bool real = false;  // the bits of a double
};

Setting real(const char* name, double value) {
  return {name, std::bit_cast<int64_t>(value), true};
}

// Whatever decides how much goes over the wire, in which order, or what it means. Flags first: a
// different model makes many fields differ, and the first is named.
std::vector<Setting> settings_of(const RankOptions& o, const ModelConfig& c) {
  return {
      {"tensor_parallel_size", o.ranks},
      {"comm_transport (0: auto, 1: mpi, 2: tcp)", static_cast<int64_t>(o.comm_transport)},
      {"micro_batches", o.max_micro_batches},
      real("the schedule's skew", o.skew),
      {"expert_path (0: all-reduce, 1: all-to-all)", static_cast<int64_t>(o.expert_path)},
      {"enable_expert_parallel", o.expert_parallel},
      {"comm_dtype (0: float32, 1: bfloat16)", static_cast<int64_t>(o.wire)},
      {"dtype (1: float32, 2: bfloat16, 3: half)", static_cast<int64_t>(resolve(o.dtype, c.dtype))},
      {"quantization (0: as stored, 1: w8a8)", static_cast<int64_t>(o.quantization)},
      {"float_head", !o.int8_head},
      {"kv_cache_dtype (0: auto, 1: int8)", static_cast<int64_t>(o.kv_cache)},
      {"load_format (0: auto, 1: dummy)", static_cast<int64_t>(o.load_format)},
      {"the seed of dummy weights", static_cast<int64_t>(o.dummy_seed)},
      {"max_num_batched_tokens", o.max_batched_tokens},
      {"the number of logits rows (from max_num_seqs)", o.max_logits_rows},
      {"max_model_len", o.max_model_len},
      {"block_size", o.block_size},
      {"the format of quantised weights", static_cast<int64_t>(c.quant.format)},
      {"num_hidden_layers", c.num_hidden_layers},
      {"hidden_size", c.hidden_size},
      {"vocab_size", c.vocab_size},
      {"architectures", static_cast<int64_t>(c.architecture)},
      {"num_attention_heads", c.num_attention_heads},
      {"num_key_value_heads", c.num_key_value_heads},
      {"head_dim", c.head_dim},
      {"attention_bias", c.qkv_bias},
      {"q_lora_rank", c.q_lora_rank},
      {"kv_lora_rank", c.kv_lora_rank},
      {"qk_nope_head_dim", c.qk_nope_head_dim},
      {"qk_rope_head_dim", c.qk_rope_head_dim},
      {"v_head_dim", c.v_head_dim},
      {"intermediate_size", c.intermediate_size},
      {"moe_intermediate_size", c.moe_intermediate_size},
      {"n_routed_experts", c.n_routed_experts},
      {"n_shared_experts", c.n_shared_experts},
      {"num_experts_per_tok", c.num_experts_per_tok},
      {"n_group", c.n_group},
      {"topk_group", c.topk_group},
      {"topk_method", static_cast<int64_t>(c.topk_method)},
      {"scoring_func", static_cast<int64_t>(c.scoring_func)},
      {"norm_topk_prob", c.norm_topk_prob},
      real("routed_scaling_factor", c.routed_scaling_factor),
      {"first_k_dense_replace", c.first_k_dense_replace},
      {"moe_layer_freq", c.moe_layer_freq},
      {"decoder_sparse_step", c.decoder_sparse_step},
      {"the number of layers with experts", c.num_moe_layers()},
      real("rms_norm_eps", c.rms_norm_eps),
      {"tie_word_embeddings", c.tie_word_embeddings},
      real("rope_theta", c.rope.theta),
      real("rope scaling factor", c.rope.factor),
      {"max_position_embeddings", c.max_position_embeddings},
  };
}

std::string shown(const Setting& setting, int64_t value) {
  return setting.real ? fmt::format("{}", std::bit_cast<double>(value)) : fmt::format("{}", value);
}

}  // namespace

Hello make_hello(const RankOptions& options, const ModelConfig& config, const char* build) {
  Hello hello;
  std::strncpy(hello.build, build, sizeof(hello.build) - 1);
  const std::vector<Setting> settings = settings_of(options, config);
  DUET_CHECK(settings.size() <= hello.settings.size());
  for (size_t i = 0; i < settings.size(); ++i) hello.settings[i] = settings[i].value;
  return hello;
}

std::string settings_difference(const Hello& own, int own_rank, const Hello& other, int rank) {
  const std::vector<Setting> names = settings_of({}, {});
  for (size_t i = 0; i < names.size(); ++i) {
    if (own.settings[i] == other.settings[i]) continue;
    return fmt::format("rank {} has {} {}, rank {} has {}: give every rank the same flags and the same model",
                       rank, names[i].name, shown(names[i], other.settings[i]), own_rank,
                       shown(names[i], own.settings[i]));
  }
  return "";
}

}  // namespace duet
