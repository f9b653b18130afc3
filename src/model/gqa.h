// GqaDecoder: what the families with grouped-query attention share: the attention weights of a layer, their
// sizes and names, and the steps that lead into attention. A family says in its stages.cc which of these
// steps it takes.
#pragma once

#include "model/decoder.h"
#include "model/families.h"

namespace duet {

struct GqaShapes : DecoderShapes {
  GqaShapes(const ModelConfig& config, ExpertPath path, bool expert_parallel, int rank, int ranks);

  Slice kv_heads;  // this rank's; where there are fewer than ranks, several have the same one
  GqaShape gqa;
};

struct GqaLayerWeights {
  std::vector<float> norm;                            // input_layernorm
  PackedMatrix q, k, v;                               // [local heads · head_dim, hidden]
  std::vector<float> q_bias, k_bias, v_bias, o_bias;  // empty: none
  std::vector<float> q_norm, k_norm;                  // [head_dim]; empty: none
  PackedMatrix o;                                     // [hidden, attention.heads]: yields a partial sum
};

class GqaDecoder : public Decoder {
 public:
  GqaDecoder(const ModelSetup& setup, const GqaShapes& shapes);

 protected:
  /// What the family does with h: writes in.q, and keys and values to the cache.
  virtual void attention_inputs(const AttentionInput& in, const GqaLayerWeights& w, const PagedCache& kv) = 0;

  // The steps, for stages.cc:
  struct KeysValues {
    Rows k, v;  // [rows, kv_heads · head_dim]
  };
  /// h → in.q, keys and values; biases where the checkpoint has them.
  KeysValues project(const AttentionInput& in, const GqaLayerWeights& w);
  /// Every head of x by itself.
  void norm_heads(Rows x, std::span<const float> weight);
  /// Every head of queries and keys to its position, in halves.
  void rotate(const AttentionInput& in, const KeysValues& made);
  void write(const AttentionInput& in, const KeysValues& made, const PagedCache& kv);

 private:
  AttentionParts attention(size_t layer) final;

  GqaShapes shapes_;
  std::vector<GqaLayerWeights> attention_;  // by layer
};

ModelBytes gqa_bytes(const ModelConfig& config, const MemoryPolicy& policy, ExpertPath path,
                     bool expert_parallel, int rank, int ranks, int threads, const BatchLimits& limits);
TensorNames gqa_tensor_names(const ModelConfig& config);

template <typename GqaModel>
constexpr Family gqa_family() {
  return {[](const ModelSetup& s) -> std::unique_ptr<Model> {
            const GqaShapes shapes(s.config, s.expert_path, s.expert_parallel, s.rank(), s.ranks());
            return std::make_unique<GqaModel>(s, shapes);
          },
          gqa_bytes, gqa_tensor_names};
}

}  // namespace duet
