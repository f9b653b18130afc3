// One rank's packed weights of a DeepSeek model. Loaded once, on the rank's own thread (first
// touch); every matrix is sliced by DeepseekShapes before it is read.
#pragma once

#include <functional>
#include <memory>
#include <unordered_set>
#include <vector>

#include "kernels/ops.h"
#include "load/weights.h"
#include "model/deepseek/shapes.h"

namespace duet {

struct AttentionWeights {
  std::vector<float> norm;  // input_layernorm
  PackedMatrix q_a;         // [q_lora, hidden]; empty without q_lora
  std::vector<float> q_norm;
  PackedMatrix q_b;   // [q_width, q_lora], or q_proj [q_width, hidden]
  PackedMatrix kv_a;  // [lora + rope, hidden]
  std::vector<float> kv_norm;
  MlaWeights mla;
  PackedMatrix o;  // [hidden, heads_width]: yields a partial sum
};

struct MoeWeights {
  PackedMatrix gate;                // [experts, hidden], read with unrounded activations
  std::vector<float> bias;          // e_score_correction_bias; empty with softmax gates
  std::vector<MlpWeights> experts;  // local ones
  MlpWeights shared;
  bool has_shared = false;
};

struct DeepseekLayer {
  AttentionWeights attention;
  std::vector<float> mlp_norm;  // post_attention_layernorm
  bool moe = false;
  MlpWeights dense;   // moe == false
  MoeWeights routed;  // moe == true
};

struct DeepseekWeights {
  std::unique_ptr<EmbeddingTable> embedding;  // rows are read where they lie, on every rank
  std::vector<DeepseekLayer> layers;
  std::vector<float> final_norm;
  PackedMatrix head;  // [vocab_rows, hidden]
};

DeepseekWeights load_deepseek(const DeepseekConfig& config, const DeepseekShapes& shapes,
                              const WeightSource& source, ComputeDtype dtype,
                              const std::function<void(double)>& progress);

/// Every tensor name that the model reads on any rank, for the audit of a checkpoint.
std::unordered_set<std::string> deepseek_tensor_names(const DeepseekConfig& config);

}  // namespace duet
