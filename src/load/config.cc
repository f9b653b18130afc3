#include "load/config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "base/json_text.h"
#include "load/config_families.h"

namespace duet {

namespace {
using nlohmann::json;

using namespace config_limits;

struct Name {
  const char* class_name;  // as architectures has it
  const char* model_type;
  Architecture architecture;
};
constexpr Name kNames[] = {
    {"DeepseekV2ForCausalLM", "deepseek_v2", Architecture::kDeepseekV2},
    {"DeepseekV3ForCausalLM", "deepseek_v3", Architecture::kDeepseekV3},
    {"LlamaForCausalLM", "llama", Architecture::kLlama},
    {"MistralForCausalLM", "mistral", Architecture::kMistral},
    {"MixtralForCausalLM", "mixtral", Architecture::kMixtral},
    {"Qwen2ForCausalLM", "qwen2", Architecture::kQwen2},
    {"Qwen3ForCausalLM", "qwen3", Architecture::kQwen3},
    {"Qwen3MoeForCausalLM", "qwen3_moe", Architecture::kQwen3Moe},
};

std::string supported() {
  std::vector<std::string> names;
  for (const Name& name : kNames) names.emplace_back(name.class_name);
  return fmt::format("supported are {}", fmt::join(names, ", "));
}
constexpr const char* kNoQuantised =
    "this layout of quantised weights is not supported; use DeepSeek's fp8, compressed-tensors W8A8, "
    "quant_model_description.json, or a checkpoint in float32, bfloat16 or float16";
constexpr const char* kDescription = "quant_model_description.json";

Architecture parse_architecture(const JsonFields& fields) {
  if (const json* list = fields.find("architectures")) {
    if (!list->is_array() || list->empty() || !list->front().is_string()) {
      fields.fail("architectures", "a list with one name");
    }
    const std::string name = list->front().get<std::string>();
    for (const Name& known : kNames)
      if (name == known.class_name) return known.architecture;
    fields.unsupported("architectures", fmt::format("{} is not supported; {}", show_name(name), supported()));
  }
  const std::string type = fields.text_or("model_type", "");
  for (const Name& known : kNames)
    if (type == known.model_type) return known.architecture;
  if (type.empty()) fields.fail("architectures", "a list with one name; " + supported());
  fields.unsupported("model_type", "the architecture is not supported; " + supported());
}

// Other modalities and layer variants that would silently change the result.
void refuse_unsupported(const JsonFields& fields) {
  if (fields.has("compression_config")) fields.unsupported("compression_config", kNoQuantised);
  for (const char* name : {"vision_config", "audio_config"}) {
    if (fields.has(name)) fields.unsupported(name, "multimodal models are not supported, only text");
  }
  if (fields.text_or("hidden_act", "silu") != "silu") {
    fields.unsupported("hidden_act", "only \"silu\" is supported");
  }
  if (fields.boolean_or("mlp_bias", false)) {
    fields.unsupported("mlp_bias", "biases of the feed-forward projections are not supported");
  }
  if (fields.number_or("partial_rotary_factor", 1.0, 0.0, 1.0) != 1.0) {
    fields.unsupported("partial_rotary_factor", "only 1 is supported");
  }
}

// Layers whose attention does not reach back to the first token. Which have a window, by Hugging Face's
// configurations: of Qwen only where use_sliding_window asks for it (published files name one that they do
// not use), and, but for the mixture of experts, from max_window_layers on or as layer_types says; of the
// others all.
void refuse_sliding_window(const JsonFields& fields, const ModelConfig& c) {
  const bool by_layer = c.architecture == Architecture::kQwen2 || c.architecture == Architecture::kQwen3;
  const bool qwen = by_layer || c.architecture == Architecture::kQwen3Moe;
  const bool mistral = c.architecture == Architecture::kMistral || c.architecture == Architecture::kMixtral;
  if (const json* types = fields.find("layer_types")) {
    if (!types->is_array()) fields.fail("layer_types", "a list of names");
    for (const json& type : *types) {
      if (!type.is_string() || type.get_ref<const std::string&>() != "full_attention")
        fields.unsupported("layer_types", "only \"full_attention\" is supported");
    }
    if (by_layer) return;
  }
  const bool implied = (qwen || c.architecture == Architecture::kMistral) && !fields.names("sliding_window");
  const int64_t window = fields.integer_or("sliding_window", implied ? 4096 : 0, 0, kMaxPositions);
  const int64_t first = by_layer ? fields.integer_or("max_window_layers", 28, 0, kMaxLayers) : 0;
  const bool used = (implied || fields.has("sliding_window")) &&
                    (mistral || fields.boolean_or("use_sliding_window", !qwen)) &&
                    first < c.num_hidden_layers;
  // One as long as the longest sequence reaches back to the first token.
  if (!used || window >= c.max_position_embeddings) return;
  fields.unsupported("sliding_window",
                     fmt::format("sliding-window attention is not supported{}",
                                 implied ? " (absent means 4096 here; null means no window)" : ""));
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

void parse_yarn(const JsonFields& scaling, RopeConfig& rope) {
  // As Hugging Face's "value or default": 0 counts as absent.
  const auto nonzero = [](double value, double absent) { return value == 0.0 ? absent : value; };
  rope.beta_fast = nonzero(scaling.number_or("beta_fast", 0.0, 0.0, 1e6), 32.0);
  rope.beta_slow = nonzero(scaling.number_or("beta_slow", 0.0, 0.0, 1e6), 1.0);
  if (rope.beta_fast < rope.beta_slow) scaling.fail("beta_fast", "a number not below beta_slow");
  rope.mscale = scaling.number_or("mscale", 0.0, 0.0, 1e3);
  rope.mscale_all_dim = scaling.number_or("mscale_all_dim", 0.0, 0.0, 1e3);
  if (scaling.has("attention_factor")) rope.attention_factor = scaling.number("attention_factor", 1e-6, 1e6);
  rope.truncate = scaling.boolean_or("truncate", true);
}

/// `rope` with the family's own defaults.
RopeConfig parse_rope(const JsonFields& fields, const std::string& file, int64_t max_positions,
                      RopeConfig rope) {
  rope.theta = fields.number_or("rope_theta", rope.theta, 1.0 + 1e-6, 1e18);
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
  if (type.empty()) scaling.fail("rope_type", "\"default\", \"linear\", \"llama3\" or \"yarn\"");
  if (type == "yarn") {
    rope.type = RopeType::kYarn;
  } else if (type == "llama3") {
    rope.type = RopeType::kLlama3;
  } else if (type == "linear") {
    rope.type = RopeType::kLinear;
  } else {
    scaling.unsupported(type_name, "supported are \"default\", \"linear\", \"llama3\" and \"yarn\"");
  }
  rope.factor = scaling.number("factor", 1.0, 1e6);
  const int64_t original = scaling.integer_or("original_max_position_embeddings", 0, 0, kMaxPositions);
  rope.original_max_position_embeddings = original == 0 ? max_positions : original;
  if (rope.type == RopeType::kYarn) parse_yarn(scaling, rope);
  if (rope.type == RopeType::kLlama3) {
    rope.low_freq_factor = scaling.number("low_freq_factor", 1e-6, 1e6);
    rope.high_freq_factor = scaling.number("high_freq_factor", 1e-6, 1e6);
    if (rope.high_freq_factor <= rope.low_freq_factor)
      scaling.fail("high_freq_factor", "a number above low_freq_factor");
  }
  return rope;
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
  for (const Name& name : kNames)
    if (name.architecture == architecture) return name.class_name;
  return "unknown";
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
  switch (type) {
    case RopeType::kDefault: return "default";
    case RopeType::kLinear: return "linear";
    case RopeType::kLlama3: return "llama3";
    case RopeType::kYarn: return "yarn";
  }
  return "unknown";
}

bool ModelConfig::is_moe_layer(int64_t layer) const {
  return n_routed_experts > 0 && layer >= first_k_dense_replace && layer % moe_layer_freq == 0 &&
         (layer + 1) % decoder_sparse_step == 0 &&
         std::find(mlp_only_layers.begin(), mlp_only_layers.end(), layer) == mlp_only_layers.end();
}

int64_t ModelConfig::num_moe_layers() const {
  int64_t count = 0;
  for (int64_t layer = 0; layer < num_hidden_layers; ++layer) count += is_moe_layer(layer) ? 1 : 0;
  return count;
}

ExpertNames ModelConfig::expert_names() const {
  return architecture == Architecture::kMixtral ? ExpertNames{"block_sparse_moe.", "w1", "w3", "w2"}
                                                : ExpertNames{};
}

ModelConfig parse_config(std::string_view text, const std::string& file_name) {
  const json root = parse_json(text, file_name, JsonKeys::kLastWins);
  const JsonFields fields(root, file_name, "");
  ModelConfig c;
  c.file = file_name;
  refuse_unsupported(fields);
  c.architecture = parse_architecture(fields);
  c.dtype = parse_dtype(fields);
  if (const json* quant = fields.find("quantization_config")) {
    c.quant = parse_quantization_config(json_text(*quant), file_name);
  }

  c.vocab_size = fields.integer("vocab_size", 1, kMaxVocab);
  c.hidden_size = fields.integer("hidden_size", 1, kMaxSize);
  c.intermediate_size = fields.integer("intermediate_size", 1, kMaxSize);
  c.num_hidden_layers = fields.integer("num_hidden_layers", 1, kMaxLayers);
  c.num_attention_heads = fields.integer("num_attention_heads", 1, kMaxSize);
  c.rms_norm_eps = fields.number_or("rms_norm_eps", 1e-6, 0.0, 1.0);
  c.tie_word_embeddings = fields.boolean_or("tie_word_embeddings", false);
  switch (c.architecture) {
    case Architecture::kDeepseekV2:
    case Architecture::kDeepseekV3: parse_deepseek(fields, c); break;
    case Architecture::kLlama: parse_llama(fields, c); break;
    case Architecture::kMistral: parse_mistral(fields, c); break;
    case Architecture::kMixtral: parse_mixtral(fields, c); break;
    case Architecture::kQwen2: parse_qwen2(fields, c); break;
    case Architecture::kQwen3:
    case Architecture::kQwen3Moe: parse_qwen3(fields, c); break;
  }
  refuse_sliding_window(fields, c);
  c.rope = parse_rope(fields, file_name, c.max_position_embeddings, c.rope);
  c.bos_token_id = fields.token_id("bos_token_id");
  c.eos_token_ids = fields.token_ids("eos_token_id");
  return c;
}

ModelConfig load_config(const std::string& dir) {
  std::error_code error;
  if (!std::filesystem::is_directory(dir, error)) {
    throw Error(ErrorKind::kNotFound, dir + ": no such directory; expected a model in Hugging Face's layout");
  }
  refuse_marker_file(dir, "adapter_config.json",
                     "LoRA adapters are not supported; merge the adapter into its base model");
  for (const char* name : {"quantize_config.json", "hf_quant_config.json"}) {
    refuse_marker_file(dir, name, kNoQuantised);
  }
  const std::string path = (std::filesystem::path(dir) / "config.json").string();
  ModelConfig config = parse_config(read_text_file(path, kMaxConfigBytes), path);
  const std::string description = (std::filesystem::path(dir) / kDescription).string();
  std::error_code ignored;
  if (!std::filesystem::exists(description, ignored)) return config;
  if (config.quant.format != WeightFormat::kFloat) {
    throw Error(
        ErrorKind::kUnsupported,
        fmt::format("{}: config.json has a quantization_config as well; keep one of them", description));
  }
  config.quant = parse_quant_description(read_text_file(description, kMaxConfigBytes), description);
  return config;
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
