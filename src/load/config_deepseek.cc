#include <fmt/format.h>

#include "load/config_families.h"

namespace duet {

namespace {
using namespace config_limits;

TopkMethod parse_topk_method(const JsonFields& fields, Architecture architecture) {
  const bool v3 = architecture == Architecture::kDeepseekV3;
  const std::string name = fields.text_or("topk_method", v3 ? "noaux_tc" : "greedy");
  if (name == "greedy" || name == "gready") return TopkMethod::kGreedy;  // the V2 code's own spelling
  if (name == "group_limited_greedy") return TopkMethod::kGroupLimitedGreedy;
  if (name == "noaux_tc") return TopkMethod::kNoauxTc;
  fields.unsupported("topk_method", "supported are greedy, group_limited_greedy and noaux_tc");
}

void parse_gate(const JsonFields& fields, ModelConfig& c) {
  const bool v3 = c.architecture == Architecture::kDeepseekV3;
  c.topk_method = parse_topk_method(fields, c.architecture);
  const bool noaux = c.topk_method == TopkMethod::kNoauxTc;
  const std::string scoring = fields.text_or("scoring_func", noaux ? "sigmoid" : "softmax");
  if (scoring != "softmax" && scoring != "sigmoid") {
    fields.unsupported("scoring_func", "supported are softmax and sigmoid");
  }
  c.scoring_func = scoring == "sigmoid" ? ScoringFunc::kSigmoid : ScoringFunc::kSoftmax;
  if (noaux != (c.scoring_func == ScoringFunc::kSigmoid)) {
    fields.unsupported("scoring_func", fmt::format("topk_method {} goes with {} only",
                                                   to_string(c.topk_method), noaux ? "sigmoid" : "softmax"));
  }
  c.norm_topk_prob = fields.boolean_or("norm_topk_prob", v3);
  c.routed_scaling_factor = fields.number_or("routed_scaling_factor", v3 ? 2.5 : 1.0, 1e-6, 1e6);

  const int64_t experts = c.n_routed_experts;
  c.num_experts_per_tok = fields.integer("num_experts_per_tok", 1, experts);
  if (c.topk_method == TopkMethod::kGreedy) return;  // looks at no groups: they stay 1
  c.n_group = fields.integer_or("n_group", v3 ? 8 : 1, 1, kMaxSize);
  c.topk_group = fields.integer_or("topk_group", v3 ? 4 : 1, 1, kMaxSize);
  if (experts % c.n_group != 0) {
    fields.fail("n_group", fmt::format("a divisor of n_routed_experts = {}", experts));
  }
  const int64_t per_group = experts / c.n_group;
  if (noaux && per_group < 2) {
    fields.fail("n_group", "groups of at least 2 experts (noaux_tc ranks a group by its best two)");
  }
  if (c.topk_group > c.n_group) fields.fail("topk_group", fmt::format("at most n_group = {}", c.n_group));
  if (c.num_experts_per_tok > c.topk_group * per_group) {
    fields.fail("num_experts_per_tok", fmt::format("at most {}, the experts in topk_group = {} groups",
                                                   c.topk_group * per_group, c.topk_group));
  }
}

void parse_attention(const JsonFields& fields, ModelConfig& c) {
  const int64_t kv_heads = fields.integer_or("num_key_value_heads", c.num_attention_heads, 1, kMaxSize);
  if (kv_heads != c.num_attention_heads) {
    fields.fail(
        "num_key_value_heads",
        fmt::format("num_attention_heads = {} (MLA gives every head its own keys)", c.num_attention_heads));
  }
  // null means "no q_lora" while an absent field has Hugging Face's default.
  c.q_lora_rank = fields.integer_or("q_lora_rank", fields.names("q_lora_rank") ? 0 : 1536, 0, kMaxSize);
  c.kv_lora_rank = fields.integer("kv_lora_rank", 1, kMaxSize);
  c.qk_nope_head_dim = fields.integer("qk_nope_head_dim", 1, kMaxSize);
  c.qk_rope_head_dim = fields.integer("qk_rope_head_dim", 2, kMaxSize);
  if (c.qk_rope_head_dim % 2 != 0) fields.fail("qk_rope_head_dim", "an even number (rotary pairs)");
  c.v_head_dim = fields.integer("v_head_dim", 1, kMaxSize);
}

}  // namespace

void parse_deepseek(const JsonFields& fields, ModelConfig& c) {
  const bool v3 = c.architecture == Architecture::kDeepseekV3;
  if (fields.boolean_or("attention_bias", false)) {
    fields.unsupported("attention_bias", "biases of projections are not supported");
  }
  if (!fields.boolean_or("rope_interleave", true)) {
    fields.unsupported("rope_interleave", "only interleaved rotary pairs (true) are supported");
  }
  c.num_nextn_predict_layers = fields.integer_or("num_nextn_predict_layers", 0, 0, kMaxLayers);
  c.max_position_embeddings =
      fields.integer_or("max_position_embeddings", v3 ? 4096 : 2048, 1, kMaxPositions);
  parse_attention(fields, c);
  c.n_routed_experts = fields.integer_or("n_routed_experts", 0, 0, kMaxSize);
  c.first_k_dense_replace = fields.integer_or("first_k_dense_replace", v3 ? 3 : 0, 0, kMaxLayers);
  c.moe_layer_freq = fields.integer_or("moe_layer_freq", 1, 1, kMaxLayers);
  if (c.n_routed_experts > 0) {
    c.moe_intermediate_size = fields.integer("moe_intermediate_size", 1, kMaxSize);
    c.n_shared_experts = fields.integer_or("n_shared_experts", 0, 0, kMaxSize);
    parse_gate(fields, c);
  }
}

}  // namespace duet
