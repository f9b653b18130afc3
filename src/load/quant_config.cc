#define PCRE2_CODE_UNIT_WIDTH 8
#include "load/quant_config.h"

#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <unordered_set>
#include <vector>

#include "base/error.h"
#include "load/json.h"

namespace duet {

namespace {
using nlohmann::json;

constexpr const char* kFormats =
    "supported are DeepSeek's fp8 (\"quant_method\": \"fp8\" with weight_block_size), compressed-tensors "
    "\"int-quantized\" W8A8 and quant_model_description.json with W8A8_DYNAMIC";
constexpr size_t kMaxPatterns = 100000;
constexpr size_t kMaxPattern = 16 << 10;
// Steps of one match: a name has a few hundred bytes, and published patterns are linear.
constexpr uint32_t kMatchSteps = 100000;

}  // namespace

struct QuantConfig::Names {
  ~Names() {
    for (pcre2_code* code : patterns) pcre2_code_free(code);
  }
  std::unordered_set<std::string> exact;
  std::vector<pcre2_code*> patterns;  // anchored at the beginning, as Python's re.match
};

bool is_projection(std::string_view tensor) {
  // The last three are an expert's of Mixtral.
  for (const char* suffix :
       {"_proj.weight", "_proj_with_mqa.weight", ".w1.weight", ".w2.weight", ".w3.weight"}) {
    if (tensor.ends_with(suffix)) return true;
  }
  return false;
}

bool QuantConfig::quantised(const std::string& module) const {
  if (format == WeightFormat::kFloat) return false;
  if (!names) return true;
  if (names->exact.contains(module)) return false;
  if (names->patterns.empty()) return true;
  const std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> context(
      pcre2_match_context_create(nullptr), pcre2_match_context_free);
  if (context) pcre2_set_match_limit(context.get(), kMatchSteps);
  for (const pcre2_code* code : names->patterns) {
    const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
        pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
    if (!data || !context)
      throw Error(ErrorKind::kResourceExhausted, "no memory to match the names of quantization_config");
    const int found = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(module.data()), module.size(), 0, 0,
                                  data.get(), context.get());
    if (found >= 0) return false;
    if (found != PCRE2_ERROR_NOMATCH) {
      throw Error(
          ErrorKind::kUnsupported,
          fmt::format("a pattern of quantization_config.ignore takes too long on {}", show_name(module)));
    }
  }
  return true;
}

namespace {

void add_ignored(QuantConfig::Names& names, const json& list, const JsonFields& fields, const char* field) {
  if (!list.is_array() || list.size() > kMaxPatterns) fields.fail(field, "a list of module names");
  for (const json& entry : list) {
    if (!entry.is_string()) fields.fail(field, "a list of module names");
    const std::string& name = entry.get_ref<const std::string&>();
    if (!name.starts_with("re:")) {
      names.exact.insert(name);
      continue;
    }
    int error = 0;
    size_t at = 0;
    const std::string pattern = name.substr(3);
    pcre2_code* code = pattern.size() > kMaxPattern
                           ? nullptr
                           : pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                           PCRE2_ANCHORED | PCRE2_NEVER_BACKSLASH_C, &error, &at, nullptr);
    if (!code) {
      fields.fail(field,
                  fmt::format("names and valid patterns; {} is none (character {})", show_name(name), at));
    }
    names.patterns.push_back(code);
  }
}

QuantConfig parse_fp8(const JsonFields& fields) {
  QuantConfig q;
  q.format = WeightFormat::kFp8Block;
  if (fields.text_or("fmt", "e4m3") != "e4m3") fields.unsupported("fmt", "only e4m3 is supported");
  const json* size = fields.find("weight_block_size");
  if (!size) {
    fields.unsupported("weight_block_size",
                       std::string("fp8 with one scale per tensor is not supported; ") + kFormats);
  }
  const auto valid = [](const json& v) { return v.is_number_integer() && v > 0 && v <= (1 << 20); };
  if (!size->is_array() || size->size() != 2 || !valid((*size)[0]) || !valid((*size)[1])) {
    fields.fail("weight_block_size", "two numbers, rows and columns of a block");
  }
  q.block_rows = (*size)[0].get<int64_t>();
  q.block_cols = (*size)[1].get<int64_t>();
  q.layout = fmt::format("fp8, {} x {} blocks", q.block_rows, q.block_cols);
  return q;
}

// One side of a config group: what Duet does, and nothing else.
void check_scheme(const json& group, const char* side, const std::string& prefix, const std::string& file) {
  const auto it = group.find(side);
  const std::string name = prefix + side;
  if (it == group.end() || !it->is_object()) {
    throw Error(ErrorKind::kUnsupported,
                fmt::format("{}: {} is missing: only W8A8 (int8 weights and int8 activations) is supported",
                            file, name));
  }
  const JsonFields fields(*it, file, name + ".");
  const bool weights = std::string_view(side) == "weights";
  if (fields.integer("num_bits", 1, 64) != 8) fields.unsupported("num_bits", "only 8 is supported");
  if (fields.text_or("type", "") != "int") fields.unsupported("type", "only \"int\" is supported");
  if (!fields.boolean_or("symmetric", false))
    fields.unsupported("symmetric", "only symmetric quantisation is supported");
  const bool dynamic = fields.boolean_or("dynamic", false);
  if (!weights && !dynamic) {
    fields.unsupported("dynamic",
                       "static activation scales (static W8A8) are not supported, only dynamic ones");
  }
  if (weights && dynamic) fields.unsupported("dynamic", "weights are quantised ahead; expected false");
  const char* strategy = weights ? "channel" : "token";
  if (fields.text_or("strategy", "") != strategy) {
    fields.unsupported("strategy", fmt::format("only \"{}\" is supported for {}", strategy, side));
  }
}

QuantConfig parse_compressed_tensors(const JsonFields& fields, const std::string& file) {
  QuantConfig q;
  q.format = WeightFormat::kInt8;
  q.layout = "compressed-tensors W8A8";
  if (fields.text_or("format", "") != "int-quantized") {
    fields.unsupported("format", std::string("only \"int-quantized\" is supported; ") + kFormats);
  }
  if (fields.has("kv_cache_scheme"))
    fields.unsupported("kv_cache_scheme", "a quantised KV cache is not supported");
  const json* groups = fields.find("config_groups");
  if (!groups || !groups->is_object() || groups->empty()) fields.fail("config_groups", "an object of groups");
  for (const auto& [name, group] : groups->items()) {
    const std::string prefix = "quantization_config.config_groups." + name + ".";
    const JsonFields in_group(group, file, prefix);
    const json* targets = in_group.find("targets");
    if (!targets || *targets != json::array({"Linear"})) {
      in_group.unsupported("targets", "only [\"Linear\"] is supported; exceptions belong in \"ignore\"");
    }
    if (in_group.has("output_activations"))
      in_group.unsupported("output_activations", "only null is supported");
    check_scheme(group, "weights", prefix, file);
    check_scheme(group, "input_activations", prefix, file);
  }
  if (const json* ignore = fields.find("ignore")) {
    const auto names = std::make_shared<QuantConfig::Names>();
    add_ignored(*names, *ignore, fields, "ignore");
    q.names = names;
  }
  return q;
}

}  // namespace

QuantConfig parse_quantization_config(std::string_view text, const std::string& file) {
  const json root = parse_json(text, file, JsonKeys::kLastWins);
  const JsonFields fields(root, file, "quantization_config.");
  const std::string method = fields.text_or("quant_method", "");
  if (method == "fp8") return parse_fp8(fields);
  if (method == "compressed-tensors") return parse_compressed_tensors(fields, file);
  if (method.empty()) fields.fail("quant_method", std::string("a name; ") + kFormats);
  fields.unsupported("quant_method", kFormats);
}

QuantConfig parse_quant_description(std::string_view text, const std::string& file) {
  const json root = parse_json(text, file, JsonKeys::kLastWins);
  QuantConfig q;
  q.format = WeightFormat::kInt8;
  q.layout = "W8A8_DYNAMIC (quant_model_description.json)";
  const auto names = std::make_shared<QuantConfig::Names>();
  for (const auto& [tensor, value] : root.items()) {
    const size_t dot = tensor.rfind('.');
    if (dot == std::string::npos) continue;  // "model_quant_type", "version": about the file
    if (!value.is_string()) {
      throw Error(ErrorKind::kCorrupt,
                  fmt::format("{}: {} is {}; expected a name", file, show_name(tensor), describe(value)));
    }
    const std::string& kind = value.get_ref<const std::string&>();
    if (kind == "FLOAT") {
      if (tensor.ends_with(".weight")) names->exact.insert(tensor.substr(0, dot));
    } else if (kind != "W8A8_DYNAMIC") {
      throw Error(ErrorKind::kUnsupported,
                  fmt::format("{}: {} is {}{}; supported are W8A8_DYNAMIC and FLOAT", file, show_name(tensor),
                              show_name(kind), kind == "W8A8" ? " (static activation scales)" : ""));
    }
  }
  q.names = names;
  return q;
}

std::string_view scale_suffix(WeightFormat format) {
  return format == WeightFormat::kFp8Block ? "_scale_inv" : "_scale";
}

}  // namespace duet
