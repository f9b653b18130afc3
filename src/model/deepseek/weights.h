// DeepSeek's attention weights, and the sizes that only multi-head latent attention has.
#pragma once

#include "model/weights.h"

namespace duet {

struct DeepseekShapes : DecoderShapes {
  DeepseekShapes(const ModelConfig& config, ExpertPath path, bool expert_parallel, int rank, int ranks);

  int64_t q_lora;  // 0: none
  MlaShape mla;
};

/// 1 / √(qk head dim), times mscale² when YaRN sets mscale_all_dim.
float softmax_scale(const ModelConfig& config);

struct MlaLayerWeights {
  std::vector<float> norm;  // input_layernorm
  PackedMatrix q_a;         // [q_lora, hidden]; empty without q_lora
  std::vector<float> q_norm;
  PackedMatrix q_b;   // [attention.q, q_lora], or q_proj [attention.q, hidden]
  PackedMatrix kv_a;  // [lora + rope, hidden]
  std::vector<float> kv_norm;
  MlaWeights mla;
  PackedMatrix o;  // [hidden, attention.heads]: yields a partial sum
};

MlaLayerWeights load_mla(const ModelConfig& config, const DeepseekShapes& shapes, const WeightLoader& load,
                         int64_t layer);
int64_t mla_bytes(const ModelConfig& config, const DeepseekShapes& shapes, const WeightSizes& size,
                  const std::string& layer);
void add_mla_names(const ModelConfig& config, const std::string& layer, TensorNames& names);

}  // namespace duet
