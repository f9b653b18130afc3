// How a checkpoint stores its Linear weights: what quantization_config or quant_model_description.json
// says. Parsed with config.json; read by the weight source, which checks every tensor against it, and by
// the memory plan. Whatever Duet cannot honour is refused here by name.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace duet {

enum class WeightFormat : uint8_t {
  kFloat,     // f32, bf16 or f16 alone
  kFp8Block,  // DeepSeek: f8e4m3 `weight`, f32 `weight_scale_inv` per block
  kInt8,      // W8A8: int8 `weight`, `weight_scale` per output channel, dynamic int8 activations
};

class QuantConfig {
 public:
  WeightFormat format = WeightFormat::kFloat;
  std::string layout;        // for people: "fp8 128x128 blocks", "compressed-tensors W8A8", …
  int64_t block_rows = 128;  // kFp8Block
  int64_t block_cols = 128;

  /// Whether `module` ("model.layers.0.mlp.up_proj") is stored quantised, as far as names say: not in
  /// `ignore` (exact, or "re:" pattern) and not FLOAT in the description.
  bool quantised(const std::string& module) const;

  struct Names;
  std::shared_ptr<const Names> names;  // null: every Linear is
};

/// The value of quantization_config (JSON text; `file` for messages). Throws kUnsupported, kCorrupt.
QuantConfig parse_quantization_config(std::string_view json, const std::string& file);
/// quant_model_description.json.
QuantConfig parse_quant_description(std::string_view json, const std::string& file);

/// Whether the tensor is the weight of a projection, the Linears that W8A8 and fp8 checkpoints quantise:
/// neither gate, head nor embedding.
bool is_projection(std::string_view tensor);

/// Suffixes of the tensors that go with a quantised "….weight": "_scale_inv" or "_scale", "_offset".
std::string_view scale_suffix(WeightFormat format);

}  // namespace duet
