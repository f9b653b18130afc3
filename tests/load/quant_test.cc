// What a quantised checkpoint may say of itself, and the weights that it serves.
#include "base/json_text.h"
#include "load/quant_config.h"

#include <nlohmann/json.hpp>

#include "helpers.h"
#include "load/checkpoint.h"
#include "load/config.h"
#include "load/weights.h"

namespace duet {
namespace {

using nlohmann::json;

json scheme(const char* strategy, bool dynamic) {
  return {
      {"num_bits", 8}, {"type", "int"}, {"symmetric", true}, {"strategy", strategy}, {"dynamic", dynamic}};
}

json w8a8() {
  return {{"quant_method", "compressed-tensors"},
          {"format", "int-quantized"},
          {"ignore", {"lm_head", "re:.*\\.mlp\\.gate$", "re:model\\.layers\\.1\\."}},
          {"config_groups",
           {{"group_0",
             {{"targets", {"Linear"}},
              {"weights", scheme("channel", false)},
              {"input_activations", scheme("token", true)}}}}}};
}

template <typename... Pieces>
void refused(ErrorKind kind, const json& j, const Pieces&... pieces) {
  expect_error(
      kind, [&] { parse_quantization_config(json_text(j), "dir/config.json"); }, pieces...);
}

TEST(QuantConfig, IgnoresExactNamesAndPatternsFromTheBeginning) {
  const QuantConfig q = parse_quantization_config(json_text(w8a8()), "f");
  EXPECT_EQ(q.format, WeightFormat::kInt8);
  EXPECT_FALSE(q.quantised("lm_head"));
  EXPECT_FALSE(q.quantised("model.layers.0.mlp.gate"));
  EXPECT_FALSE(q.quantised("model.layers.1.self_attn.o_proj"));
  EXPECT_TRUE(q.quantised("model.layers.0.mlp.gate_proj"));
  EXPECT_TRUE(q.quantised("model.layers.11.mlp.up_proj"));
  EXPECT_TRUE(q.quantised("x.model.layers.1.mlp.up_proj")) << "re.match begins at the first character";
  EXPECT_FALSE(QuantConfig{}.quantised("anything"));
}

TEST(QuantConfig, RefusesByNameWhatItCannotHonour) {
  refused(ErrorKind::kUnsupported, {{"quant_method", "gptq"}}, "quant_method", "gptq", "int-quantized");
  refused(ErrorKind::kCorrupt, json::object(), "quant_method", "missing");
  refused(ErrorKind::kUnsupported, {{"quant_method", "fp8"}}, "weight_block_size");
  refused(ErrorKind::kCorrupt, {{"quant_method", "fp8"}, {"weight_block_size", {128}}}, "weight_block_size");
  refused(ErrorKind::kCorrupt, {{"quant_method", "fp8"}, {"weight_block_size", {128, 0}}},
          "weight_block_size");
  refused(ErrorKind::kUnsupported, {{"quant_method", "fp8"}, {"fmt", "e5m2"}, {"weight_block_size", {8, 8}}},
          "fmt");
  json j = w8a8();
  j["format"] = "pack-quantized";
  refused(ErrorKind::kUnsupported, j, "format", "pack-quantized");
  j = w8a8();
  j["config_groups"]["group_0"]["input_activations"]["dynamic"] = false;
  refused(ErrorKind::kUnsupported, j, "input_activations.dynamic", "static W8A8");
  j = w8a8();
  j["config_groups"]["group_0"]["input_activations"] = nullptr;
  refused(ErrorKind::kUnsupported, j, "input_activations", "W8A8");
  j = w8a8();
  j["config_groups"]["group_0"]["weights"]["symmetric"] = false;
  refused(ErrorKind::kUnsupported, j, "weights.symmetric");
  j = w8a8();
  j["config_groups"]["group_0"]["weights"]["num_bits"] = 4;
  refused(ErrorKind::kUnsupported, j, "weights.num_bits", "4");
  j = w8a8();
  j["config_groups"]["group_0"]["targets"] = {"re:.*up_proj"};
  refused(ErrorKind::kUnsupported, j, "targets");
  j = w8a8();
  j["ignore"] = {"re:("};
  refused(ErrorKind::kCorrupt, j, "ignore", "re:(");
  j["ignore"] = {"re:(a+)+$"};
  const QuantConfig slow = parse_quantization_config(json_text(j), "f");
  expect_error(
      ErrorKind::kUnsupported, [&] { (void)slow.quantised(std::string(40, 'a') + '!'); }, "takes too long");
}

TEST(QuantConfig, DescriptionNamesTensors) {
  const QuantConfig q = parse_quant_description(
      R"({"model_quant_type": "W8A8_DYNAMIC", "a.weight": "W8A8_DYNAMIC", "b.weight": "FLOAT"})", "f");
  EXPECT_TRUE(q.quantised("a"));
  EXPECT_FALSE(q.quantised("b"));
  expect_error(
      ErrorKind::kUnsupported, [] { parse_quant_description(R"({"x.weight": "W8A8"})", "f"); }, "x.weight",
      "static");
  expect_error(
      ErrorKind::kUnsupported, [] { parse_quant_description(R"({"x.weight": "W4A16"})", "f"); }, "W4A16");
}

std::string entry(const char* name, const char* dtype, const char* shape, int begin, int end) {
  return std::string("\"") + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

/// "m.weight" [2, 3] of `dtype` with scales at `scale_name`, and an offset whose last byte is `offset`.
std::unique_ptr<WeightSource> source_of(const TempDir& dir, const char* dtype, const char* scale_name,
                                        const char* scale_shape, const QuantConfig& quant, char offset = 0) {
  std::string header = "{" + entry("m.weight", dtype, "[2,3]", 0, 6) + "," + entry("pad", "U8", "[2]", 6, 8) +
                       "," + entry(scale_name, "F32", scale_shape, 8, 16) + "," +
                       entry("m.weight_offset", "F32", "[2,1]", 16, 24) + "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string bytes = safetensors_bytes(header, 24);
  const float scales[2] = {0.5f, 2.0f};
  std::memcpy(bytes.data() + bytes.size() - 16, scales, 8);
  std::memcpy(bytes.data() + bytes.size() - 24, "\x01\x02\x03\x04\x05\x06", 6);
  bytes.back() = offset;
  dir.write("model.safetensors", bytes);
  return checkpoint_weights(std::make_shared<const Checkpoint>(Checkpoint::open(dir.path())), quant);
}

TEST(QuantisedWeights, ServeSlicesWithTheirScales) {
  const TempDir dir;
  const QuantConfig int8 = parse_quantization_config(json_text(w8a8()), "f");
  const auto source = source_of(dir, "I8", "m.weight_scale", "[2,1]", int8);
  const LoadedMatrix m = source->matrix("m.weight", 2, 3, {1, 2}, {1, 3});
  EXPECT_EQ(m.view.dtype, DType::kI8);
  EXPECT_EQ(static_cast<const int8_t*>(m.view.data)[0], 5);
  EXPECT_EQ(m.view.scales.at(0, 1), 2.0f);

  QuantConfig fp8;
  fp8.format = WeightFormat::kFp8Block;
  fp8.block_rows = 4;
  fp8.block_cols = 2;  // columns 0 and 1 share a scale, column 2 has its own
  const TempDir dir8;
  const LoadedMatrix f = source_of(dir8, "F8_E4M3", "m.weight_scale_inv", "[1,2]", fp8)
                             ->matrix("m.weight", 2, 3, {0, 2}, {1, 3});
  EXPECT_EQ(f.view.scales.at(1, 0), 0.5f);
  EXPECT_EQ(f.view.scales.at(1, 1), 2.0f);
}

TEST(QuantisedWeights, ErrorsNameTensorAndReason) {
  const QuantConfig int8 = parse_quantization_config(json_text(w8a8()), "f");
  const auto load = [](const char* dtype, const char* scale, const char* shape, const QuantConfig& q,
                       char offset) {
    const TempDir dir;
    source_of(dir, dtype, scale, shape, q, offset)->matrix("m.weight", 2, 3);
  };
  expect_error(
      ErrorKind::kUnsupported, [&] { load("I8", "m.weight_scale", "[2,1]", int8, 1); }, "m.weight_offset",
      "symmetric");
  expect_error(
      ErrorKind::kUnsupported, [&] { load("I8", "m.weight_scale", "[2,1]", {}, 0); }, "m.weight", "I8",
      "no quantization_config");
  expect_error(
      ErrorKind::kUnsupported, [&] { load("F8_E4M3", "m.weight_scale", "[2,1]", int8, 0); }, "F8_E4M3",
      "W8A8");
  expect_error(
      ErrorKind::kNotFound, [&] { load("I8", "other", "[2,1]", int8, 0); }, "m.weight_scale", "missing");
  expect_error(
      ErrorKind::kCorrupt, [&] { load("I8", "m.weight_scale", "[1,2]", int8, 0); }, "m.weight_scale",
      "[1, 2]");
  json j = w8a8();
  j["ignore"] = {"m"};
  expect_error(
      ErrorKind::kUnsupported,
      [&] { load("I8", "m.weight_scale", "[2,1]", parse_quantization_config(json_text(j), "f"), 0); },
      "unquantised");
}

}  // namespace
}  // namespace duet
