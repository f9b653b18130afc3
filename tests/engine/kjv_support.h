// The small trained model of the repository, as the tests of generation load and ask it.
#pragma once

#include <string>

#include "duet/llm.h"

namespace duet {

inline LlmOptions kjv_options(int ranks = 1) {
  LlmOptions o;
  o.model = std::string(DUET_MODELS) + "/kjv-8m";
  o.dtype = "float32";
  o.comm_dtype = "f32";
  o.tensor_parallel_size = ranks;
  o.threads = 1;
  o.kv_cache_memory = "32MiB";
  o.max_num_batched_tokens = 256;
  return o;
}

inline SamplingParams greedy(int max_tokens) {
  SamplingParams p;
  p.temperature = 0.0;
  p.max_tokens = max_tokens;
  p.ignore_eos = true;
  return p;
}

inline Prompt text_prompt(const std::string& text) {
  Prompt p;
  p.text = text;
  return p;
}

}  // namespace duet
