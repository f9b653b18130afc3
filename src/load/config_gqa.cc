// The families with grouped-query attention. Absent fields have Hugging Face's defaults, except that kv heads
// and, but for Qwen3, head_dim follow from the other sizes where a file leaves them out.
#include <fmt/format.h>

#include "load/config_families.h"

namespace duet {

namespace {
using namespace config_limits;
using nlohmann::json;

void parse_attention(const JsonFields& fields, int64_t positions, ModelConfig& c, int64_t head_dim = 0) {
  const int64_t heads = c.num_attention_heads;
  c.max_position_embeddings = fields.integer_or("max_position_embeddings", positions, 1, kMaxPositions);
  c.num_key_value_heads = fields.integer_or("num_key_value_heads", heads, 1, kMaxSize);
  if (heads % c.num_key_value_heads != 0) {
    fields.fail("num_key_value_heads", fmt::format("a divisor of num_attention_heads = {}", heads));
  }
  if (!fields.has("head_dim") && head_dim == 0 && c.hidden_size % heads != 0) {
    fields.fail("head_dim",
                fmt::format("a number, since num_attention_heads = {} does not divide hidden_size = {}",
                            heads, c.hidden_size));
  }
  c.head_dim = fields.integer_or("head_dim", head_dim > 0 ? head_dim : c.hidden_size / heads, 2, kMaxSize);
  if (c.head_dim % 2 != 0) fields.fail("head_dim", "an even number (rotary pairs)");
}

/// A list of layer numbers; those beyond the last layer mean nothing.
std::vector<int64_t> layer_list(const JsonFields& fields, const char* name) {
  std::vector<int64_t> layers;
  const json* list = fields.find(name);
  if (!list) return layers;
  if (!list->is_array()) fields.fail(name, "a list of layer numbers");
  for (const json& item : *list) {
    if (!item.is_number_integer()) fields.fail(name, "a list of layer numbers");
    layers.push_back(item.get<int64_t>());
  }
  return layers;
}

void parse_experts(const JsonFields& fields, ModelConfig& c) {
  c.n_routed_experts = fields.integer_or("num_experts", 128, 0, kMaxSize);
  if (c.n_routed_experts == 0) return;
  c.moe_intermediate_size = fields.integer_or("moe_intermediate_size", 768, 1, kMaxSize);
  c.num_experts_per_tok = fields.integer_or("num_experts_per_tok", 8, 1, c.n_routed_experts);
  c.norm_topk_prob = fields.boolean_or("norm_topk_prob", false);
  c.decoder_sparse_step = fields.integer_or("decoder_sparse_step", 1, 1, kMaxLayers);
  c.mlp_only_layers = layer_list(fields, "mlp_only_layers");
}

}  // namespace

void parse_llama(const JsonFields& fields, ModelConfig& c) {
  parse_attention(fields, 2048, c);
  c.qkv_bias = c.o_bias = fields.boolean_or("attention_bias", false);
}

void parse_mistral(const JsonFields& fields, ModelConfig& c) {
  parse_attention(fields, 131072, c);  // never a bias; attention_bias is not a field of this family
}

void parse_mixtral(const JsonFields& fields, ModelConfig& c) {
  parse_mistral(fields, c);
  c.n_routed_experts = fields.integer_or("num_local_experts", 8, 1, kMaxSize);
  c.num_experts_per_tok = fields.integer_or("num_experts_per_tok", 2, 1, c.n_routed_experts);
  c.moe_intermediate_size = c.intermediate_size;
  c.norm_topk_prob = true;  // a softmax over the chosen experts
  c.rms_norm_eps = fields.number_or("rms_norm_eps", 1e-5, 0.0, 1.0);
  c.rope.theta = 1e6;
}

void parse_qwen2(const JsonFields& fields, ModelConfig& c) {
  parse_attention(fields, 32768, c);
  c.qkv_bias = true;  // always; attention_bias is not a field of this family
}

void parse_qwen3(const JsonFields& fields, ModelConfig& c) {
  parse_attention(fields, 32768, c, c.architecture == Architecture::kQwen3 ? 128 : 0);
  c.qkv_bias = c.o_bias = fields.boolean_or("attention_bias", false);
  c.qk_norm = true;
  if (c.architecture == Architecture::kQwen3Moe) parse_experts(fields, c);
}

}  // namespace duet
