#include "model/deepseek/weights.h"

#include <cmath>

#include "model/rope_table.h"

namespace duet {

DeepseekShapes::DeepseekShapes(const ModelConfig& c, ExpertPath path, bool expert_parallel, int rank_in,
                               int ranks_in)
    : DecoderShapes(c, path, expert_parallel, rank_in, ranks_in), q_lora(c.q_lora_rank) {
  attention = {heads.size() * c.qk_head_dim(), heads.size() * c.v_head_dim,
               c.kv_lora_rank + c.qk_rope_head_dim, c.qk_rope_head_dim};
  mla.heads = static_cast<int>(heads.size());
  mla.nope = static_cast<int>(c.qk_nope_head_dim);
  mla.rope = static_cast<int>(c.qk_rope_head_dim);
  mla.v = static_cast<int>(c.v_head_dim);
  mla.lora = static_cast<int>(c.kv_lora_rank);
  mla.scale = softmax_scale(c);
  attention.kv_int8_bytes = latent_row_bytes(mla, DType::kI8);
}

float softmax_scale(const ModelConfig& c) {
  double scale = 1.0 / std::sqrt(static_cast<double>(c.qk_head_dim()));
  if (c.rope.type == RopeType::kYarn && c.rope.mscale_all_dim != 0.0) {
    const double m = yarn_mscale(c.rope.factor, c.rope.mscale_all_dim);
    scale *= m * m;
  }
  return static_cast<float>(scale);
}

MlaLayerWeights load_mla(const ModelConfig& c, const DeepseekShapes& s, const WeightLoader& load,
                         int64_t layer) {
  MlaLayerWeights w;
  const std::string p = layer_prefix(layer) + "self_attn.";
  const WeightSource& source = load.source();
  const int64_t heads = c.num_attention_heads, qk = c.qk_head_dim(), kv = c.qk_nope_head_dim + c.v_head_dim;
  const Slice q_rows{s.heads.begin * qk, s.heads.end * qk};
  w.norm = source.vector_f32(layer_prefix(layer) + "input_layernorm.weight", s.hidden);
  if (s.q_lora > 0) {
    w.q_a = load.pack(p + "q_a_proj.weight", s.q_lora, s.hidden);
    w.q_norm = source.vector_f32(p + "q_a_layernorm.weight", s.q_lora);
    w.q_b = load.pack(p + "q_b_proj.weight", heads * qk, s.q_lora, q_rows, {0, s.q_lora});
  } else {
    w.q_b = load.pack(p + "q_proj.weight", heads * qk, s.hidden, q_rows, {0, s.hidden});
  }
  w.kv_a = load.pack(p + "kv_a_proj_with_mqa.weight", s.attention.kv, s.hidden);
  w.kv_norm = source.vector_f32(p + "kv_a_layernorm.weight", c.kv_lora_rank);
  const LoadedMatrix kv_b = source.matrix(p + "kv_b_proj.weight", heads * kv, c.kv_lora_rank,
                                          {s.heads.begin * kv, s.heads.end * kv}, {0, c.kv_lora_rank});
  w.mla = pack_mla(s.mla, kv_b.view, pack_as(load.policy(), WeightRole::kLatent, kv_b.view).dtype);
  w.o = load.pack(p + "o_proj.weight", s.hidden, heads * c.v_head_dim, {0, s.hidden},
                  {s.heads.begin * c.v_head_dim, s.heads.end * c.v_head_dim});
  return w;
}

int64_t mla_bytes(const ModelConfig& c, const DeepseekShapes& s, const WeightSizes& size,
                  const std::string& layer) {
  const std::string a = layer + "self_attn.";
  const Slice hidden{0, s.hidden};
  const Slice q_rows{s.heads.begin * c.qk_head_dim(), s.heads.end * c.qk_head_dim()};
  int64_t sum = size.matrix(a + "kv_a_proj_with_mqa", {0, s.attention.kv}, hidden) +
                size.matrix(a + "o_proj", hidden, {s.heads.begin * c.v_head_dim, s.heads.end * c.v_head_dim});
  sum += s.q_lora > 0 ? size.matrix(a + "q_a_proj", {0, s.q_lora}, hidden) +
                            size.matrix(a + "q_b_proj", q_rows, {0, s.q_lora})
                      : size.matrix(a + "q_proj", q_rows, hidden);
  // kv_b_proj in its three shapes.
  const int64_t per_head = s.mla.nope + s.mla.v;
  const WeightView v =
      size.stored(a + "kv_b_proj", {s.heads.begin * per_head, s.heads.end * per_head}, {0, s.mla.lora});
  const PackAs as = pack_as(size.policy(), WeightRole::kLatent, v).dtype;
  for (int64_t h = 0; h < s.heads.size(); ++h) {
    sum += WeightSizes::bytes(row_range(v, h * per_head, per_head), as) +
           WeightSizes::bytes(transposed(row_range(v, h * per_head, s.mla.nope)), as) +
           WeightSizes::bytes(row_range(v, h * per_head + s.mla.nope, s.mla.v), as);
  }
  return sum;
}

void add_mla_names(const ModelConfig& c, const std::string& layer, TensorNames& names) {
  const auto add = [&](const char* name) { names.insert(layer + "self_attn." + name + ".weight"); };
  for (const char* name : {"kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj"}) add(name);
  if (c.q_lora_rank > 0) {
    for (const char* name : {"q_a_proj", "q_a_layernorm", "q_b_proj"}) add(name);
  } else {
    add("q_proj");
  }
}

}  // namespace duet
