// The forward pass of every family once more, in plain float64 loops: slow, readable, and sharing nothing
// with src/model, src/kernels or the config parser, so that a mistake there cannot hide in both. Read from
// Hugging Face's semantics (modeling_deepseek_v2.py, modeling_deepseek_v3.py, modeling_llama.py, …) and the
// papers (V2: arXiv 2405.04434, V3: 2412.19437, YaRN: 2309.00071); checked against the golden logits by
// OracleItself. Grouped-query attention is in oracle_gqa.cc. Always holds: MLA in the expanded form, weights
// as stored, ties in the gate to the lower index.
#pragma once

#include <string>
#include <vector>

#include "load/weights.h"

namespace duet {

/// config.json, in the words of the papers. Absent and null are the same.
struct OracleConfig {
  explicit OracleConfig(const std::string& json);
  int64_t vocab, hidden, layers, heads, q_lora, kv_lora, nope, rope, v;  // q_lora 0: one q_proj
  int64_t intermediate, moe_intermediate, experts, shared_experts, top_k, groups, top_groups;
  int64_t first_dense, moe_every, sparse_step;
  std::vector<int64_t> dense_layers;
  bool grouped;  // grouped-query attention: then rope is the whole head, and so is v
  int64_t kv_heads;
  bool qkv_bias, o_bias, qk_norm, mixtral;
  bool tied, v3_gate, by_groups, normalise;
  double eps, routed_scaling, softmax_scale, rotation_scale;
  std::vector<double> frequencies;  // [rope / 2], radians per position

  bool has_experts(int64_t layer) const;
};

class Oracle {
 public:
  using Vector = std::vector<double>;
  using Matrix = std::vector<Vector>;  // [output features][input features]

  /// Reads every tensor of the model by name, once. Throws what the source throws.
  Oracle(const std::string& config_json, const WeightSource& source);

  const OracleConfig& config() const { return c_; }
  /// From now on latent and rotated keys are what an int8 cache (kernels/latent8.h) keeps of them.
  void keep_cache_in_8_bits() { int8_cache_ = true; }
  /// [tokens, vocab], a sequence on its own from position 0.
  std::vector<float> logits(const std::vector<int32_t>& tokens);
  /// Smallest distance, so far, between a chosen expert or group and the best that was not chosen.
  /// Float32 arithmetic can't be expected to choose alike when it is near its rounding errors.
  double gate_margin() const { return gate_margin_; }

 private:
  struct Mlp {
    Matrix gate, up, down;
  };
  struct Layer {
    Vector attention_norm, q_norm, kv_norm, mlp_norm, correction_bias;
    Matrix q_a, q_b, kv_a, kv_b, o, router;
    Matrix q, k, v;  // grouped-query attention, and their biases
    Vector q_bias, k_bias, v_bias, o_bias, q_head_norm, k_head_norm;
    Mlp mlp;                   // dense layers
    std::vector<Mlp> experts;  // MoE layers
    Mlp shared;
  };
  struct Choice {
    int64_t expert;
    double weight;
  };

  Layer load_layer(const WeightSource& source, int64_t index) const;
  Mlp load_mlp(const WeightSource& source, const std::string& prefix, int64_t intermediate) const;
  void load_latent(const WeightSource& source, const std::string& attn, Layer& w) const;
  void load_grouped(const WeightSource& source, const std::string& attn, Layer& w) const;
  std::vector<Vector> grouped_attention(const Layer& w, const std::vector<Vector>& h) const;
  Vector normalised(const Vector& x, const Vector& weight) const;
  void rotate(double* pairs, int64_t position) const;
  std::vector<Vector> attention(const Layer& w, const std::vector<Vector>& h) const;
  Vector feed_forward(const Layer& w, const Vector& h);
  std::vector<Choice> choose_experts(const Layer& w, const Vector& h);
  /// The indices of the `count` largest; notes the gate's margin.
  std::vector<int64_t> largest(const Vector& values, int64_t count);

  OracleConfig c_;
  Matrix embedding_, head_;
  Vector final_norm_;
  std::vector<Layer> layers_;
  double gate_margin_ = 1.0;
  bool int8_cache_ = false;
};

}  // namespace duet
