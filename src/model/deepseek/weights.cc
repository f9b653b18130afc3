#include "model/deepseek/weights.h"

#include <fmt/format.h>

namespace duet {

namespace {

class Loader {
 public:
  Loader(const DeepseekConfig& c, const DeepseekShapes& s, const WeightSource& source, ComputeDtype dtype)
      : c_(c), s_(s), source_(source), dtype_(dtype) {}

  AttentionWeights attention(const std::string& layer) const {
    AttentionWeights w;
    const std::string p = layer + "self_attn.";
    const int64_t heads = c_.num_attention_heads, qk = c_.qk_head_dim(),
                  kv = c_.qk_nope_head_dim + c_.v_head_dim;
    const Slice q_rows{s_.heads.begin * qk, s_.heads.end * qk};
    w.norm = source_.vector_f32(layer + "input_layernorm.weight", s_.hidden);
    if (s_.q_lora > 0) {
      w.q_a = pack(p + "q_a_proj.weight", s_.q_lora, s_.hidden);
      w.q_norm = source_.vector_f32(p + "q_a_layernorm.weight", s_.q_lora);
      w.q_b = pack(p + "q_b_proj.weight", heads * qk, s_.q_lora, q_rows, {0, s_.q_lora});
    } else {
      w.q_b = pack(p + "q_proj.weight", heads * qk, s_.hidden, q_rows, {0, s_.hidden});
    }
    w.kv_a = pack(p + "kv_a_proj_with_mqa.weight", s_.kv_width, s_.hidden);
    w.kv_norm = source_.vector_f32(p + "kv_a_layernorm.weight", c_.kv_lora_rank);
    const LoadedMatrix kv_b = source_.matrix(p + "kv_b_proj.weight", heads * kv, c_.kv_lora_rank,
                                             {s_.heads.begin * kv, s_.heads.end * kv}, {0, c_.kv_lora_rank});
    w.mla = pack_mla(s_.mla, kv_b.view, weight_dtype(dtype_, kv_b.view.dtype));
    w.o = pack(p + "o_proj.weight", s_.hidden, heads * c_.v_head_dim, {0, s_.hidden},
               {s_.heads.begin * c_.v_head_dim, s_.heads.end * c_.v_head_dim});
    return w;
  }

  // Columns [columns) of the intermediate size: rows of gate and up, columns of down.
  MlpWeights mlp(const std::string& prefix, int64_t intermediate, Slice columns) const {
    const LoadedMatrix gate =
        source_.matrix(prefix + "gate_proj.weight", intermediate, s_.hidden, columns, {0, s_.hidden});
    const LoadedMatrix up =
        source_.matrix(prefix + "up_proj.weight", intermediate, s_.hidden, columns, {0, s_.hidden});
    const LoadedMatrix down =
        source_.matrix(prefix + "down_proj.weight", s_.hidden, intermediate, {0, s_.hidden}, columns);
    return pack_mlp(gate.view, up.view, down.view, weight_dtype(dtype_, gate.view.dtype));
  }

  MoeWeights moe(const std::string& layer) const {
    MoeWeights w;
    const std::string p = layer + "mlp.";
    // The gate chooses; it keeps its stored precision in every --dtype.
    const LoadedMatrix gate = source_.matrix(p + "gate.weight", c_.n_routed_experts, s_.hidden);
    w.gate = PackedMatrix(gate.view, gate.view.dtype);
    if (s_.gate.method == GateMethod::kNoAuxTc) {
      w.bias = source_.vector_f32(p + "gate.e_score_correction_bias", c_.n_routed_experts);
    }
    for (int64_t e = s_.experts.begin; e < s_.experts.end; ++e) {
      w.experts.push_back(
          mlp(fmt::format("{}experts.{}.", p, e), c_.moe_intermediate_size, s_.expert_columns));
    }
    w.has_shared = c_.n_shared_experts > 0;
    if (w.has_shared) {
      w.shared =
          mlp(p + "shared_experts.", c_.n_shared_experts * c_.moe_intermediate_size, s_.shared_columns);
    }
    return w;
  }

  DeepseekLayer layer(int64_t index) const {
    const std::string p = fmt::format("model.layers.{}.", index);
    DeepseekLayer layer;
    layer.attention = attention(p);
    layer.mlp_norm = source_.vector_f32(p + "post_attention_layernorm.weight", s_.hidden);
    layer.moe = c_.is_moe_layer(index);
    if (layer.moe)
      layer.routed = moe(p);
    else
      layer.dense = mlp(p + "mlp.", c_.intermediate_size, s_.dense_columns);
    return layer;
  }

  PackedMatrix pack(const std::string& name, int64_t rows, int64_t cols) const {
    return pack(name, rows, cols, {0, rows}, {0, cols});
  }
  PackedMatrix pack(const std::string& name, int64_t rows, int64_t cols, Slice row_slice,
                    Slice col_slice) const {
    const LoadedMatrix m = source_.matrix(name, rows, cols, row_slice, col_slice);
    return PackedMatrix(m.view, weight_dtype(dtype_, m.view.dtype));
  }

 private:
  const DeepseekConfig& c_;
  const DeepseekShapes& s_;
  const WeightSource& source_;
  ComputeDtype dtype_;
};

constexpr const char* kEmbedding = "model.embed_tokens.weight";

}  // namespace

DeepseekWeights load_deepseek(const DeepseekConfig& config, const DeepseekShapes& shapes,
                              const WeightSource& source, ComputeDtype dtype,
                              const std::function<void(double)>& progress) {
  const Loader loader(config, shapes, source, dtype);
  DeepseekWeights w;
  w.embedding = source.embedding(kEmbedding, config.vocab_size, config.hidden_size);
  w.layers.reserve(static_cast<size_t>(config.num_hidden_layers));
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
    w.layers.push_back(loader.layer(l));
    if (progress) progress(static_cast<double>(l + 1) / static_cast<double>(config.num_hidden_layers + 1));
  }
  w.final_norm = source.vector_f32("model.norm.weight", config.hidden_size);
  w.head = loader.pack(config.tie_word_embeddings ? kEmbedding : "lm_head.weight", config.vocab_size,
                       config.hidden_size, shapes.vocab_rows, {0, config.hidden_size});
  if (progress) progress(1.0);
  return w;
}

std::unordered_set<std::string> deepseek_tensor_names(const DeepseekConfig& c) {
  std::unordered_set<std::string> names{kEmbedding, "model.norm.weight", "lm_head.weight"};
  const auto mlp = [&](const std::string& prefix) {
    for (const char* part : {"gate_proj", "up_proj", "down_proj"}) names.insert(prefix + part + ".weight");
  };
  for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
    const std::string p = fmt::format("model.layers.{}.", l);
    for (const char* name : {"input_layernorm", "post_attention_layernorm", "self_attn.kv_a_proj_with_mqa",
                             "self_attn.kv_a_layernorm", "self_attn.kv_b_proj", "self_attn.o_proj"}) {
      names.insert(p + name + ".weight");
    }
    if (c.q_lora_rank > 0) {
      for (const char* name : {"q_a_proj", "q_a_layernorm", "q_b_proj"})
        names.insert(p + "self_attn." + name + ".weight");
    } else {
      names.insert(p + "self_attn.q_proj.weight");
    }
    if (!c.is_moe_layer(l)) {
      mlp(p + "mlp.");
      continue;
    }
    names.insert(p + "mlp.gate.weight");
    if (c.topk_method == TopkMethod::kNoauxTc) names.insert(p + "mlp.gate.e_score_correction_bias");
    for (int64_t e = 0; e < c.n_routed_experts; ++e) mlp(fmt::format("{}mlp.experts.{}.", p, e));
    if (c.n_shared_experts > 0) mlp(p + "mlp.shared_experts.");
  }
  return names;
}

}  // namespace duet
