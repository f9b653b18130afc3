#include "load/config.h"

#include <fmt/format.h>

#include <filesystem>

#include "base/error.h"
#include "load/json.h"

namespace duet {

namespace {
using nlohmann::json;

// Far above any published model, low enough that a product of two sizes cannot overflow.
constexpr int64_t kMaxSize = int64_t{1} << 20;  // widths, head sizes, experts
constexpr int64_t kMaxVocab = int64_t{1} << 26;
constexpr int64_t kMaxLayers = int64_t{1} << 14;
constexpr int64_t kMaxPositions = int64_t{1} << 31;
constexpr uint64_t kMaxConfigBytes = uint64_t{64} << 20;

constexpr const char* kSupported = "supported are DeepseekV2ForCausalLM and DeepseekV3ForCausalLM";
constexpr const char* kNoQuantised =
    "quantised checkpoints are not supported yet; use one in float32, bfloat16 or float16";

Architecture parse_architecture(const JsonFields& fields) {
  if (const json* list = fields.find("architectures")) {
    if (!list->is_array() || list->empty() || !list->front().is_string()) {
      fields.fail("architectures", "a list with one name");
    }
    const std::string name = list->front().get<std::string>();
    if (name == "DeepseekV2ForCausalLM") return Architecture::kDeepseekV2;
    if (name == "DeepseekV3ForCausalLM") return Architecture::kDeepseekV3;
    fields.unsupported("architectures", fmt::format("{} is not supported; {}", show_name(name), kSupported));
  }
  const std::string type = fields.text_or("model_type", "");
  if (type == "deepseek_v2") return Architecture::kDeepseekV2;
  if (type == "deepseek_v3") return Architecture::kDeepseekV3;
  if (type.empty()) fields.fail("architectures", std::string("a list with one name; ") + kSupported);
  fields.unsupported("model_type", std::string("the architecture is not supported; ") + kSupported);
}

// Quantisation, other modalities and layer variants that would silently change the result.
void refuse_unsupported(const JsonFields& fields) {
  for (const char* name : {"quantization_config", "compression_config"}) {
    if (const json* quant = fields.find(name)) {
      const bool named = quant->is_object() && quant->contains("quant_method");
      fields.unsupported(
          name, (named ? "quant_method " + describe((*quant)["quant_method"]) + ": " : "") + kNoQuantised);
    }
  }
  for (const char* name : {"vision_config", "audio_config"}) {
    if (fields.has(name)) fields.unsupported(name, "multimodal models are not supported, only text");
  }
  if (fields.text_or("hidden_act", "silu") != "silu") {
    fields.unsupported("hidden_act", "only \"silu\" is supported");
  }
  for (const char* name : {"attention_bias", "mlp_bias"}) {
    if (fields.boolean_or(name, false)) fields.unsupported(name, "biases of projections are not supported");
  }
  if (fields.has("sliding_window") && fields.boolean_or("use_sliding_window", true)) {
    fields.unsupported("sliding_window", "sliding-window attention is not supported");
  }
  if (!fields.boolean_or("rope_interleave", true)) {
    fields.unsupported("rope_interleave", "only interleaved rotary pairs (true) are supported");
  }
}

DType parse_dtype(const JsonFields& fields) {
  const char* name = fields.has("dtype") ? "dtype" : "torch_dtype";
  std::string text = fields.text_or(name, "float32");  // Hugging Face's default
  if (text.starts_with("torch.")) text.erase(0, 6);
  if (text == "float32") return DType::kF32;
  if (text == "bfloat16") return DType::kBf16;
  if (text == "float16") return DType::kF16;
  fields.unsupported(name, "supported are float32, bfloat16 and float16");
}

RopeConfig parse_rope(const JsonFields& fields, const std::string& file, int64_t max_positions) {
  RopeConfig rope;
  rope.theta = fields.number_or("rope_theta", 10000.0, 1.0 + 1e-6, 1e18);
  const char* name = fields.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const json* object = fields.find(name);
  if (!object) return rope;
  const JsonFields scaling(*object, file, std::string(name) + ".");
  rope.theta = scaling.number_or("rope_theta", rope.theta, 1.0 + 1e-6, 1e18);
  if (scaling.number_or("partial_rotary_factor", 1.0, 0.0, 1.0) != 1.0) {
    scaling.unsupported("partial_rotary_factor", "only 1 is supported");
  }
  const char* type_name = scaling.has("rope_type") ? "rope_type" : "type";
  const std::string type = scaling.text_or(type_name, "");
  // rope_parameters without a type holds theta alone; rope_scaling without one means nothing known.
  if (type == "default" || (type.empty() && fields.has("rope_parameters") && !scaling.has("factor")))
    return rope;
  if (type.empty()) scaling.fail("rope_type", "\"default\" or \"yarn\"");
  if (type != "yarn") scaling.unsupported(type_name, "supported are \"default\" and \"yarn\"");
  rope.type = RopeType::kYarn;
  rope.factor = scaling.number("factor", 1.0, 1e6);
  // As Hugging Face's "value or default": 0 counts as absent.
  const auto nonzero = [](double value, double absent) { return value == 0.0 ? absent : value; };
  rope.beta_fast = nonzero(scaling.number_or("beta_fast", 0.0, 0.0, 1e6), 32.0);
  rope.beta_slow = nonzero(scaling.number_or("beta_slow", 0.0, 0.0, 1e6), 1.0);
  if (rope.beta_fast < rope.beta_slow) scaling.fail("beta_fast", "a number not below beta_slow");
  rope.mscale = scaling.number_or("mscale", 0.0, 0.0, 1e3);
  rope.mscale_all_dim = scaling.number_or("mscale_all_dim", 0.0, 0.0, 1e3);
  if (scaling.has("attention_factor")) rope.attention_factor = scaling.number("attention_factor", 1e-6, 1e6);
  const int64_t original = scaling.integer_or("original_max_position_embeddings", 0, 0, kMaxPositions);
  rope.original_max_position_embeddings = original == 0 ? max_positions : original;
  rope.truncate = scaling.boolean_or("truncate", true);
  return rope;
}

TopkMethod parse_topk_method(const JsonFields& fields, Architecture architecture) {
  const bool v3 = architecture == Architecture::kDeepseekV3;
  const std::string name = fields.text_or("topk_method", v3 ? "noaux_tc" : "greedy");
  if (name == "greedy" || name == "gready") return TopkMethod::kGreedy;  // the V2 code's own spelling
  if (name == "group_limited_greedy") return TopkMethod::kGroupLimitedGreedy;
  if (name == "noaux_tc") return TopkMethod::kNoauxTc;
  fields.unsupported("topk_method", "supported are greedy, group_limited_greedy and noaux_tc");
}

void parse_gate(const JsonFields& fields, DeepseekConfig& c) {
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

void parse_attention(const JsonFields& fields, DeepseekConfig& c) {
  c.num_attention_heads = fields.integer("num_attention_heads", 1, kMaxSize);
  const int64_t kv_heads = fields.integer_or("num_key_value_heads", c.num_attention_heads, 1, kMaxSize);
  if (kv_heads != c.num_attention_heads) {
    fields.fail(
        "num_key_value_heads",
        fmt::format("num_attention_heads = {} (MLA gives every head its own keys)", c.num_attention_heads));
  }
  // null means "no q_lora" while an absent field has Hugging Face's default.
  c.q_lora_rank = fields.integer_or("q_lora_rank", 0, 0, kMaxSize);
  c.kv_lora_rank = fields.integer("kv_lora_rank", 1, kMaxSize);
  c.qk_nope_head_dim = fields.integer("qk_nope_head_dim", 1, kMaxSize);
  c.qk_rope_head_dim = fields.integer("qk_rope_head_dim", 2, kMaxSize);
  if (c.qk_rope_head_dim % 2 != 0) fields.fail("qk_rope_head_dim", "an even number (rotary pairs)");
  c.v_head_dim = fields.integer("v_head_dim", 1, kMaxSize);
}

void refuse_marker_file(const std::string& dir, const char* name, const std::string& why) {
  std::error_code ignored;
  const std::string path = (std::filesystem::path(dir) / name).string();
  if (std::filesystem::exists(path, ignored)) {
    throw Error(ErrorKind::kUnsupported, path + ": " + why);
  }
}

}  // namespace

const char* to_string(Architecture architecture) {
  return architecture == Architecture::kDeepseekV2 ? "DeepseekV2ForCausalLM" : "DeepseekV3ForCausalLM";
}

const char* to_string(TopkMethod method) {
  switch (method) {
    case TopkMethod::kGreedy: return "greedy";
    case TopkMethod::kGroupLimitedGreedy: return "group_limited_greedy";
    case TopkMethod::kNoauxTc: return "noaux_tc";
  }
  return "unknown";
}

const char* to_string(ScoringFunc func) {
  return func == ScoringFunc::kSoftmax ? "softmax" : "sigmoid";
}
const char* to_string(RopeType type) {
  return type == RopeType::kDefault ? "default" : "yarn";
}

int64_t DeepseekConfig::num_moe_layers() const {
  int64_t count = 0;
  for (int64_t layer = 0; layer < num_hidden_layers; ++layer) count += is_moe_layer(layer) ? 1 : 0;
  return count;
}

DeepseekConfig parse_config(std::string_view text, const std::string& file_name) {
  const json root = parse_json(text, file_name, JsonKeys::kLastWins);
  const JsonFields fields(root, file_name, "");
  DeepseekConfig c;
  c.file = file_name;
  refuse_unsupported(fields);
  c.architecture = parse_architecture(fields);
  const bool v3 = c.architecture == Architecture::kDeepseekV3;
  c.dtype = parse_dtype(fields);

  c.vocab_size = fields.integer("vocab_size", 1, kMaxVocab);
  c.hidden_size = fields.integer("hidden_size", 1, kMaxSize);
  c.num_hidden_layers = fields.integer("num_hidden_layers", 1, kMaxLayers);
  c.num_nextn_predict_layers = fields.integer_or("num_nextn_predict_layers", 0, 0, kMaxLayers);
  c.max_position_embeddings =
      fields.integer_or("max_position_embeddings", v3 ? 4096 : 2048, 1, kMaxPositions);
  c.rms_norm_eps = fields.number_or("rms_norm_eps", 1e-6, 0.0, 1.0);
  c.tie_word_embeddings = fields.boolean_or("tie_word_embeddings", false);
  parse_attention(fields, c);
  if (!root.contains("q_lora_rank")) c.q_lora_rank = 1536;
  c.rope = parse_rope(fields, file_name, c.max_position_embeddings);

  c.intermediate_size = fields.integer("intermediate_size", 1, kMaxSize);
  c.n_routed_experts = fields.integer_or("n_routed_experts", 0, 0, kMaxSize);
  c.first_k_dense_replace = fields.integer_or("first_k_dense_replace", v3 ? 3 : 0, 0, kMaxLayers);
  c.moe_layer_freq = fields.integer_or("moe_layer_freq", 1, 1, kMaxLayers);
  if (c.n_routed_experts > 0) {
    c.moe_intermediate_size = fields.integer("moe_intermediate_size", 1, kMaxSize);
    c.n_shared_experts = fields.integer_or("n_shared_experts", 0, 0, kMaxSize);
    parse_gate(fields, c);
  }
  c.bos_token_id = fields.token_id("bos_token_id");
  c.eos_token_ids = fields.token_ids("eos_token_id");
  return c;
}

DeepseekConfig load_config(const std::string& dir) {
  std::error_code error;
  if (!std::filesystem::is_directory(dir, error)) {
    throw Error(ErrorKind::kNotFound, dir + ": no such directory; expected a model in Hugging Face's layout");
  }
  refuse_marker_file(dir, "adapter_config.json",
                     "LoRA adapters are not supported; merge the adapter into its base model");
  for (const char* name : {"quant_model_description.json", "quantize_config.json", "hf_quant_config.json"}) {
    refuse_marker_file(dir, name, kNoQuantised);
  }
  const std::string path = (std::filesystem::path(dir) / "config.json").string();
  return parse_config(read_text_file(path, kMaxConfigBytes), path);
}

GenerationConfig parse_generation_config(std::string_view text, const std::string& file_name) {
  const json root = parse_json(text, file_name, JsonKeys::kLastWins);
  const JsonFields fields(root, file_name, "");
  GenerationConfig g;
  g.eos_token_ids = fields.token_ids("eos_token_id");
  g.bos_token_id = fields.token_id("bos_token_id");
  if (fields.has("do_sample")) g.do_sample = fields.boolean_or("do_sample", false);
  if (fields.has("temperature")) g.temperature = fields.number("temperature", 0.0, 1e6);
  if (fields.has("top_p")) g.top_p = fields.number("top_p", 0.0, 1.0);
  if (fields.has("min_p")) g.min_p = fields.number("min_p", 0.0, 1.0);
  if (fields.has("top_k")) g.top_k = fields.integer("top_k", -1, kMaxVocab);
  if (fields.has("repetition_penalty")) g.repetition_penalty = fields.number("repetition_penalty", 1e-6, 1e6);
  return g;
}

GenerationConfig load_generation_config(const std::string& dir) {
  const std::filesystem::path path = std::filesystem::path(dir) / "generation_config.json";
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return {};
  return parse_generation_config(read_text_file(path.string(), kMaxConfigBytes), path.string());
}

}  // namespace duet
