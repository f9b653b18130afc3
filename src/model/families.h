// The families of models: what each of them gives to model.h's functions. A new one is a folder with its
// stages.cc and a row in families.cc.
#pragma once

#include "model/model.h"

namespace duet {

struct Family {
  std::unique_ptr<Model> (*make)(const ModelSetup& setup);
  ModelBytes (*bytes)(const ModelConfig& config, const MemoryPolicy& policy, ExpertPath path,
                      bool expert_parallel, int rank, int ranks, int threads, const BatchLimits& limits);
  std::unordered_set<std::string> (*tensor_names)(const ModelConfig& config);
};

extern const Family kDeepseek;  // V2, V2-Lite, V3, R1
extern const Family kLlama;     // and Mistral, Mixtral
extern const Family kQwen2;
extern const Family kQwen3;  // and Qwen3-MoE

}  // namespace duet
