#include "model/gqa.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace duet {

namespace {

int64_t attention_scratch(const GqaShapes& s, int threads) {
  const int64_t widest = std::max({s.attention.q, s.attention.kv, s.hidden});
  const int64_t deepest = std::max(s.hidden, s.attention.heads);
  const int64_t product = static_cast<int64_t>(gemm_scratch_bytes(kProjectionRows, widest, deepest, threads));
  return std::max(kProjectionRows * s.attention.kv * 4 + product,
                  static_cast<int64_t>(gqa_scratch_bytes(s.gqa, threads)));
}

// Rows of q_proj and of k_proj and v_proj that belong to this rank.
Slice q_rows(const GqaShapes& s) {
  return {s.heads.begin * s.gqa.head_dim, s.heads.end * s.gqa.head_dim};
}
Slice kv_rows(const GqaShapes& s) {
  return {s.kv_heads.begin * s.gqa.head_dim, s.kv_heads.end * s.gqa.head_dim};
}

GqaLayerWeights load_layer(const ModelConfig& c, const GqaShapes& s, const WeightLoader& load,
                           int64_t layer) {
  GqaLayerWeights w;
  const std::string p = layer_prefix(layer) + "self_attn.";
  const WeightSource& source = load.source();
  const int64_t q = c.num_attention_heads * c.head_dim, kv = c.num_key_value_heads * c.head_dim;
  w.norm = source.vector_f32(layer_prefix(layer) + "input_layernorm.weight", s.hidden);
  w.q = load.pack(p + "q_proj.weight", q, s.hidden, q_rows(s), {0, s.hidden});
  w.k = load.pack(p + "k_proj.weight", kv, s.hidden, kv_rows(s), {0, s.hidden});
  w.v = load.pack(p + "v_proj.weight", kv, s.hidden, kv_rows(s), {0, s.hidden});
  w.o = load.pack(p + "o_proj.weight", s.hidden, q, {0, s.hidden}, q_rows(s));
  if (c.qkv_bias) {
    w.q_bias = source.vector_f32(p + "q_proj.bias", q, q_rows(s));
    w.k_bias = source.vector_f32(p + "k_proj.bias", kv, kv_rows(s));
    w.v_bias = source.vector_f32(p + "v_proj.bias", kv, kv_rows(s));
  }
  if (c.o_bias) w.o_bias = source.vector_f32(p + "o_proj.bias", s.hidden);
  if (c.qk_norm) {
    w.q_norm = source.vector_f32(p + "q_norm.weight", c.head_dim);
    w.k_norm = source.vector_f32(p + "k_norm.weight", c.head_dim);
  }
  return w;
}

}  // namespace

GqaShapes::GqaShapes(const ModelConfig& c, ExpertPath path, bool expert_parallel, int rank_in, int ranks_in)
    : DecoderShapes(c, path, expert_parallel, rank_in, ranks_in) {
  const int64_t group = c.num_attention_heads / c.num_key_value_heads;
  kv_heads = {heads.begin / group, (heads.end + group - 1) / group};
  attention = {heads.size() * c.head_dim, heads.size() * c.head_dim, 2 * kv_heads.size() * c.head_dim,
               c.head_dim};
  gqa.heads = static_cast<int>(heads.size());
  gqa.kv_heads = static_cast<int>(kv_heads.size());
  gqa.head_dim = static_cast<int>(c.head_dim);
  gqa.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.head_dim)));
  DUET_CHECK(gqa.heads % gqa.kv_heads == 0);
}

GqaDecoder::GqaDecoder(const ModelSetup& setup, const GqaShapes& shapes)
    : Decoder(setup, shapes, attention_scratch(shapes, setup.threads())), shapes_(shapes) {
  load_weights([&](const WeightLoader& load, int64_t layer) {
    attention_.push_back(load_layer(config(), shapes_, load, layer));
  });
}

Decoder::AttentionParts GqaDecoder::attention(size_t layer) {
  const GqaLayerWeights& w = attention_[layer];
  const PagedCache kv = cache(layer);
  AttentionParts parts;
  parts.norm = w.norm;
  parts.inputs = [this, &w, kv](const AttentionInput& in) { attention_inputs(in, w, kv); };
  parts.core = [this, kv](ConstRows q, std::span<const AttentionSpan> spans, Rows heads) {
    gqa_attention(cx(), shapes_.gqa, q, kv, spans, heads);
  };
  parts.out = &w.o;
  parts.out_bias = w.o_bias;
  return parts;
}

GqaDecoder::KeysValues GqaDecoder::project(const AttentionInput& in, const GqaLayerWeights& w) {
  const auto product = [&](const PackedMatrix& m, std::span<const float> bias, Rows out) {
    gemm(cx(), in.h, m.view(), out);
    if (!bias.empty()) add_bias(cx(), bias, out);
  };
  const int64_t width = int64_t{shapes_.gqa.kv_heads} * shapes_.gqa.head_dim;
  const KeysValues made{scratch_rows(in.h.rows, width), scratch_rows(in.h.rows, width)};
  product(w.q, w.q_bias, in.q);
  product(w.k, w.k_bias, made.k);
  product(w.v, w.v_bias, made.v);
  return made;
}

void GqaDecoder::norm_heads(Rows x, std::span<const float> weight) {
  DUET_CHECK(x.stride == x.cols);
  const Rows heads(x.data, x.rows * (x.cols / shapes_.gqa.head_dim), shapes_.gqa.head_dim);
  rms_norm(cx(), heads, weight, eps(), heads);
}

void GqaDecoder::rotate(const AttentionInput& in, const KeysValues& made) {
  const GqaShape& g = shapes_.gqa;
  rope_halves(cx(), in.q, g.heads, g.head_dim, 0, in.positions, rope());
  rope_halves(cx(), made.k, g.kv_heads, g.head_dim, 0, in.positions, rope());
}

void GqaDecoder::write(const AttentionInput& in, const KeysValues& made, const PagedCache& kv) {
  write_kv(cx(), shapes_.gqa, made.k, made.v, in.slots, kv);
}

ModelBytes gqa_bytes(const ModelConfig& c, const MemoryPolicy& policy, ExpertPath path, bool expert_parallel,
                     int rank, int ranks, int threads, const BatchLimits& limits) {
  const GqaShapes s(c, path, expert_parallel, rank, ranks);
  const WeightSizes size(c, s, policy);
  const Slice hidden{0, s.hidden};
  const int64_t weights = size.decoder([&](const std::string& layer) {
    const std::string a = layer + "self_attn.";
    return size.matrix(a + "q_proj", q_rows(s), hidden) + size.matrix(a + "k_proj", kv_rows(s), hidden) +
           size.matrix(a + "v_proj", kv_rows(s), hidden) + size.matrix(a + "o_proj", hidden, q_rows(s));
  });
  return decoder_bytes(c, s, policy, limits, threads, weights, attention_scratch(s, threads));
}

TensorNames gqa_tensor_names(const ModelConfig& c) {
  return decoder_tensor_names(c, [&](const std::string& layer, TensorNames& names) {
    const std::string a = layer + "self_attn.";
    for (const char* name : {"q_proj", "k_proj", "v_proj"}) {
      names.insert(a + name + ".weight");
      if (c.qkv_bias) names.insert(a + name + ".bias");
    }
    names.insert(a + "o_proj.weight");
    if (c.o_bias) names.insert(a + "o_proj.bias");
    if (!c.qk_norm) return;
    for (const char* name : {"q_norm", "k_norm"}) names.insert(a + name + ".weight");
  });
}

}  // namespace duet
