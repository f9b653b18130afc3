// SamplingParams checked and completed: the public struct's unset fields take the values of
// generation_config.json or vLLM's. Made by Llm once per request; sampler and stop rules read it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "duet/llm.h"
#include "load/config.h"

namespace duet {

struct ResolvedParams {
  double temperature = 1.0;  // 0: greedy
  double top_p = 1.0;
  int64_t top_k = 0;  // 0: all
  double min_p = 0.0;
  double repetition_penalty = 1.0;
  double presence_penalty = 0.0;
  double frequency_penalty = 0.0;
  uint64_t seed = 0;
  int n = 1;
  int64_t max_tokens = 16;
  int64_t min_tokens = 0;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;  // ascending, those of the model's end included
  bool skip_special_tokens = true;
  int logprobs = -1;         // −1: none
  int prompt_logprobs = -1;  // −1: none
  std::vector<std::pair<int32_t, float>> logit_bias;
  bool include_stop = false;                      // the text keeps the stop string that ended it
  std::vector<int32_t> requested_stop_token_ids;  // those of the request alone, ascending

  bool greedy() const { return temperature == 0.0; }
  bool penalised() const {
    return repetition_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0;
  }
};

/// What a model brings along.
struct SamplingDefaults {
  GenerationConfig generation;         // sampling values empty with --generation-config vllm
  std::vector<int32_t> eos_token_ids;  // of generation_config.json and config.json
  int64_t vocab_size = 0;
};

/// Throws Error(kInvalidArgument) that names the field, its value and what is allowed.
/// `derived_seed` is used when params.seed is unset.
ResolvedParams resolve_params(const SamplingParams& params, const SamplingDefaults& defaults,
                              uint64_t derived_seed);

}  // namespace duet
