#include "model/weights.h"

#include <fmt/format.h>

#include <algorithm>

namespace duet {

namespace {

// Rows that are read at a time: what lies beside the packed weights while loading stays small.
constexpr int64_t kReadRows = 512;
static_assert(kReadRows % kPanelColumns == 0);

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr ExpertNames kDense;  // and shared experts, which only families with these names have

}  // namespace

std::string layer_prefix(int64_t index) {
  return fmt::format("model.layers.{}.", index);
}

PackAs pack_as(const MemoryPolicy& policy, WeightRole role, const WeightView& stored) {
  const bool fp8 = stored.dtype == DType::kF8E4M3, int8 = stored.dtype == DType::kI8;
  // 8-bit weights that cannot stay so become floats.
  const DType plain = fp8 || int8 ? DType::kF32 : stored.dtype;
  if (role == WeightRole::kGate) return plain;
  const DType as_float = weight_dtype(policy.dtype, plain);
  if (policy.quantization == Quantization::kW8A8) {
    if (role == WeightRole::kLinear) return {DType::kI8, Inputs::kInt8};
    return policy.int8_head ? DType::kI8 : as_float;
  }
  if (int8) return role == WeightRole::kLatent ? PackAs(as_float) : PackAs(DType::kI8, Inputs::kInt8);
  // kv_b_proj is also packed turned around, by heads.
  const bool fits = fp8 && fits_fp8(stored) && (role != WeightRole::kLatent || fits_fp8(transposed(stored)));
  return fits ? DType::kF8E4M3 : as_float;
}

// ---- loading ------------------------------------------------------------------------------------

PackedMatrix WeightLoader::pack(const std::string& name, int64_t rows, int64_t cols) const {
  return pack(name, rows, cols, {0, rows}, {0, cols});
}

PackedMatrix WeightLoader::pack(const std::string& name, int64_t rows, int64_t cols, Slice row_slice,
                                Slice col_slice, WeightRole role) const {
  PackedMatrix packed;
  for (int64_t r = row_slice.begin; r == row_slice.begin || r < row_slice.end; r += kReadRows) {
    const Slice part{r, std::min(r + kReadRows, row_slice.end)};
    const LoadedMatrix m = source_.matrix(name, rows, cols, part, col_slice);
    if (r == row_slice.begin) {
      packed = PackedMatrix(row_slice.size(), col_slice.size(), pack_as(policy_, role, m.view), m.view);
    }
    packed.pack_rows(r - row_slice.begin, m.view);
  }
  return packed;
}

// Columns [columns) of the intermediate size: rows of gate and up, columns of down.
MlpWeights WeightLoader::mlp(const std::string& prefix, const ExpertNames& names, int64_t intermediate,
                             Slice columns) const {
  const auto matrix = [&](const char* name, int64_t rows, int64_t cols, Slice row_slice, Slice col_slice) {
    return source_.matrix(fmt::format("{}{}.weight", prefix, name), rows, cols, row_slice, col_slice);
  };
  const Slice all{0, s_.hidden};
  const LoadedMatrix gate = matrix(names.gate_proj, intermediate, s_.hidden, columns, all);
  const LoadedMatrix up = matrix(names.up_proj, intermediate, s_.hidden, columns, all);
  const LoadedMatrix down = matrix(names.down_proj, s_.hidden, intermediate, all, columns);
  return pack_mlp(gate.view, up.view, down.view, pack_as(policy_, WeightRole::kLinear, gate.view),
                  pack_as(policy_, WeightRole::kLinear, down.view));
}

MoeWeights WeightLoader::moe(const std::string& layer) const {
  MoeWeights w;
  const ExpertNames names = c_.expert_names();
  const std::string p = layer + names.block;
  // The gate chooses; it keeps its stored precision in every --dtype.
  const LoadedMatrix gate = source_.matrix(p + "gate.weight", c_.n_routed_experts, s_.hidden);
  w.gate = PackedMatrix(gate.view, pack_as(policy_, WeightRole::kGate, gate.view));
  if (s_.gate.method == GateMethod::kNoAuxTc) {
    w.bias = source_.vector_f32(p + "gate.e_score_correction_bias", c_.n_routed_experts);
  }
  for (int64_t e = s_.experts.begin; e < s_.experts.end; ++e) {
    w.experts.push_back(
        mlp(fmt::format("{}experts.{}.", p, e), names, c_.moe_intermediate_size, s_.expert_columns));
  }
  w.has_shared = s_.shared_size > 0;
  if (w.has_shared) w.shared = mlp(p + "shared_experts.", kDense, s_.shared_size, s_.shared_columns);
  return w;
}

FeedForwardWeights WeightLoader::feed_forward(int64_t index) const {
  const std::string p = layer_prefix(index);
  FeedForwardWeights w;
  w.norm = source_.vector_f32(p + "post_attention_layernorm.weight", s_.hidden);
  w.moe = c_.is_moe_layer(index);
  if (w.moe)
    w.routed = moe(p);
  else
    w.dense = mlp(p + "mlp.", kDense, c_.intermediate_size, s_.dense_columns);
  return w;
}

DecoderWeights WeightLoader::decoder(const std::function<void(int64_t layer)>& attention,
                                     const std::function<void(double)>& progress) const {
  DecoderWeights w;
  w.embedding = source_.embedding(kEmbedding, s_.vocab, s_.hidden);
  w.feed_forward.reserve(static_cast<size_t>(s_.layers));
  for (int64_t l = 0; l < s_.layers; ++l) {
    attention(l);
    w.feed_forward.push_back(feed_forward(l));
    if (progress) progress(static_cast<double>(l + 1) / static_cast<double>(s_.layers + 1));
  }
  w.final_norm = source_.vector_f32("model.norm.weight", s_.hidden);
  w.head = pack(c_.tie_word_embeddings ? kEmbedding : "lm_head.weight", s_.vocab, s_.hidden, s_.vocab_rows,
                {0, s_.hidden}, WeightRole::kHead);
  if (progress) progress(1.0);
  return w;
}

// ---- sizes --------------------------------------------------------------------------------------

int64_t WeightSizes::matrix(const std::string& module, Slice rows, Slice cols, WeightRole role) const {
  return bytes(stored(module, rows, cols), role);
}

WeightView WeightSizes::stored(const std::string& module, Slice rows, Slice cols) const {
  WeightView v{nullptr, c_.dtype, rows.size(), cols.size(), cols.size(), 1, {}};
  if (!c_.quant.quantised(module) || module == "model.embed_tokens") return v;
  static constexpr float kAny = 1.0f;
  if (c_.quant.format == WeightFormat::kInt8) {
    v.dtype = DType::kI8;
    v.scales.data = &kAny;
  } else {
    const int64_t br = c_.quant.block_rows, bc = c_.quant.block_cols;
    v.dtype = DType::kF8E4M3;
    v.scales = {&kAny, br, bc, rows.begin % br, cols.begin % bc, 1, 1};
  }
  return v;
}

int64_t WeightSizes::bytes(const WeightView& v, PackAs as) {
  const PackedView shape = packed_shape({&v, 1}, as);
  return (v.rows + kPanelColumns - 1) / kPanelColumns * shape.panel_bytes();
}

int64_t WeightSizes::mlp(const std::string& prefix, const ExpertNames& names, Slice columns) const {
  if (columns.size() == 0) return 0;
  return matrix(prefix + names.gate_proj, columns, {0, s_.hidden}) +
         matrix(prefix + names.up_proj, columns, {0, s_.hidden}) +
         matrix(prefix + names.down_proj, {0, s_.hidden}, columns);
}

int64_t WeightSizes::decoder(const std::function<int64_t(const std::string& layer)>& attention) const {
  // The embedding doubles as head where they are tied, and is no Linear of its own name.
  int64_t sum = matrix(c_.tie_word_embeddings ? "model.embed_tokens" : "lm_head", s_.vocab_rows,
                       {0, s_.hidden}, WeightRole::kHead);
  const ExpertNames names = c_.expert_names();
  for (int64_t l = 0; l < s_.layers; ++l) {
    const std::string p = layer_prefix(l), m = p + names.block;
    sum += attention(p);
    if (!c_.is_moe_layer(l)) {
      sum += mlp(p + "mlp.", kDense, s_.dense_columns);
      continue;
    }
    // Experts of a layer are stored alike.
    sum +=
        s_.experts.size() * mlp(fmt::format("{}experts.{}.", m, s_.experts.begin), names, s_.expert_columns);
    sum += mlp(m + "shared_experts.", kDense, s_.shared_columns);
    sum += static_cast<int64_t>(packed_bytes(c_.n_routed_experts, s_.hidden, c_.dtype));
  }
  return sum;
}

// ---- names --------------------------------------------------------------------------------------

TensorNames decoder_tensor_names(
    const ModelConfig& c, const std::function<void(const std::string& layer, TensorNames&)>& attention) {
  TensorNames names{kEmbedding, "model.norm.weight", "lm_head.weight"};
  const ExpertNames expert = c.expert_names();
  const auto mlp = [&](const std::string& prefix, const ExpertNames& n) {
    for (const char* part : {n.gate_proj, n.up_proj, n.down_proj}) names.insert(prefix + part + ".weight");
  };
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
    const std::string p = layer_prefix(l);
    for (const char* name : {"input_layernorm", "post_attention_layernorm"})
      names.insert(p + name + ".weight");
    attention(p, names);
    if (!c.is_moe_layer(l)) {
      mlp(p + "mlp.", kDense);
      continue;
    }
    const std::string m = p + expert.block;
    names.insert(m + "gate.weight");
    if (c.topk_method == TopkMethod::kNoauxTc) names.insert(m + "gate.e_score_correction_bias");
    for (int64_t e = 0; e < c.n_routed_experts; ++e) mlp(fmt::format("{}experts.{}.", m, e), expert);
    if (c.n_shared_experts > 0) mlp(m + "shared_experts.", kDense);
  }
  if (c.quant.format == WeightFormat::kFloat) return names;
  std::vector<std::string> scales;
  for (const std::string& name : names) {
    if (!name.ends_with(".weight")) continue;
    scales.push_back(name + std::string(scale_suffix(c.quant.format)));
    scales.push_back(name + "_offset");
    scales.push_back(name + "_zero_point");
  }
  names.insert(scales.begin(), scales.end());
  return names;
}

}  // namespace duet
