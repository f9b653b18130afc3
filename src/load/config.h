// config.json and generation_config.json of a Hugging Face directory as plain structs. Called once
// at start; whatever Duet cannot honour is refused here by name, never ignored.
// Always holds for a ModelConfig that parse_config returned: sizes are positive and small enough
// that products of two fit int64_t, groups divide experts, kv heads divide heads, top-k fits, enums are
// known.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "load/quant_config.h"
#include "tensor/dtype.h"

namespace duet {

enum class Architecture : uint8_t {
  kDeepseekV2,
  kDeepseekV3,
  kLlama,
  kMistral,
  kMixtral,
  kQwen2,
  kQwen3,
  kQwen3Moe
};
enum class TopkMethod : uint8_t { kGreedy, kGroupLimitedGreedy, kNoauxTc };
enum class ScoringFunc : uint8_t { kSoftmax, kSigmoid };
enum class RopeType : uint8_t { kDefault, kLinear, kLlama3, kYarn };

/// The names of config.json: "DeepseekV3ForCausalLM", "noaux_tc", "sigmoid", "yarn".
const char* to_string(Architecture architecture);
const char* to_string(TopkMethod method);
const char* to_string(ScoringFunc func);
const char* to_string(RopeType type);

/// DeepSeek rotates interleaved pairs (2i, 2i + 1), the others pairs (i, i + half).
struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  double factor = 1.0;                                   // of all but kDefault
  int64_t original_max_position_embeddings = 0;          // llama3 and YaRN
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  // YaRN only, as Hugging Face reads them:
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double mscale = 0.0;          // 0: absent
  double mscale_all_dim = 0.0;  // 0: absent
  std::optional<double> attention_factor;
  bool truncate = true;  // floor and ceil of the correction range
};

/// Where a checkpoint keeps a layer's experts, below "model.layers.N.".
struct ExpertNames {
  const char* block = "mlp.";  // the gate; "experts.N."
  const char* gate_proj = "gate_proj";
  const char* up_proj = "up_proj";
  const char* down_proj = "down_proj";
};

struct ModelConfig {
  std::string file;  // where it came from, for messages
  Architecture architecture = Architecture::kDeepseekV3;
  DType dtype = DType::kF32;  // torch_dtype or dtype: f32, bf16 or f16
  QuantConfig quant;

  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_nextn_predict_layers = 0;  // MTP layers in the checkpoint, skipped
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  bool tie_word_embeddings = false;

  int64_t num_attention_heads = 0;
  // Grouped-query attention (all but DeepSeek):
  int64_t num_key_value_heads = 0;  // divides num_attention_heads
  int64_t head_dim = 0;             // even
  bool qkv_bias = false;
  bool o_bias = false;
  bool qk_norm = false;  // of each head, before it is rotated
  // Multi-head latent attention (DeepSeek):
  int64_t q_lora_rank = 0;   // 0: one q_proj instead of q_a_proj and q_b_proj
  int64_t kv_lora_rank = 0;  // 0: grouped-query attention
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;  // even
  int64_t v_head_dim = 0;
  RopeConfig rope;

  int64_t intermediate_size = 0;      // dense layers
  int64_t moe_intermediate_size = 0;  // one routed expert
  int64_t n_routed_experts = 0;       // 0: every layer is dense, and so are the fields below
  int64_t n_shared_experts = 0;       // 0: none
  int64_t num_experts_per_tok = 0;
  int64_t n_group = 1;  // 1 with kGreedy
  int64_t topk_group = 1;
  TopkMethod topk_method = TopkMethod::kGreedy;
  ScoringFunc scoring_func = ScoringFunc::kSoftmax;
  bool norm_topk_prob = false;
  double routed_scaling_factor = 1.0;
  int64_t first_k_dense_replace = 0;
  int64_t moe_layer_freq = 1;
  int64_t decoder_sparse_step = 1;       // Qwen
  std::vector<int64_t> mlp_only_layers;  // Qwen: these are dense

  std::optional<int32_t> bos_token_id;
  std::vector<int32_t> eos_token_ids;

  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  bool latent_attention() const { return kv_lora_rank > 0; }
  /// Routed experts in layer `layer`: from first_k_dense_replace on, every moe_layer_freq-th; every
  /// decoder_sparse_step-th, but for mlp_only_layers.
  bool is_moe_layer(int64_t layer) const;
  int64_t num_moe_layers() const;
  ExpertNames expert_names() const;
};

/// Pure. Throws Error: kCorrupt (JSON, a missing field, a wrong type or value) or kUnsupported
/// (architecture, activation, quantisation … by name), with file, field, found and expected.
ModelConfig parse_config(std::string_view json, const std::string& file_name);

/// dir/config.json, and dir/quant_model_description.json where there is one; refuses LoRA adapters and
/// other quantisation layouts by their marker files.
ModelConfig load_config(const std::string& dir);

/// Fields are empty where the file does not set them.
struct GenerationConfig {
  std::vector<int32_t> eos_token_ids;
  std::optional<int32_t> bos_token_id;
  std::optional<bool> do_sample;
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<int64_t> top_k;
  std::optional<double> repetition_penalty;
};

GenerationConfig parse_generation_config(std::string_view json, const std::string& file_name);
/// dir/generation_config.json; all empty when there is none.
GenerationConfig load_generation_config(const std::string& dir);

}  // namespace duet
