// Sampler: from one row of logits to the next token. Called by Llm on rank 0 after each step, once
// per sequence whose last token was computed. What always holds: the choice depends on the row, the
// request's parameters and its own tokens alone; ties go to the lowest id.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/cpu.h"
#include "duet/llm.h"
#include "engine/params.h"
#include "model/batch.h"

namespace duet {

/// What the choice depends on besides the logits.
struct SampleInput {
  const ResolvedParams* params = nullptr;
  std::span<const int32_t> tokens;  // prompt, then generated; the new token's index is its size
  int64_t prompt_tokens = 0;
  uint32_t sample = 0;  // which of the request's n continuations
};

class Sampler {
 public:
  Sampler(int64_t vocab_size, CpuLevel level);

  /// In vLLM's order: no stop token before min_tokens, logit_bias, penalties, greedy or temperature, min_p,
  /// top_k, top_p, one draw. NaN counts as −infinity; throws Error(kInternal) when no logit is a number.
  int32_t sample(std::span<const float> logits, const SampleInput& input);

  /// True where sample() takes the likeliest token of the row as it is.
  static bool takes_best(const ResolvedParams& params, int64_t generated);
  /// What sample() gives for a row of which only that is known; throws as it does.
  static int32_t take(const BestToken& best);

  /// Log-softmax of the raw logits for `token` and the `top` likeliest (vLLM's raw_logprobs).
  TokenLogprob logprobs(std::span<const float> logits, int32_t token, int top);

 private:
  bool adjust(std::span<const float> logits, const SampleInput& input);
  void penalise(const SampleInput& input);
  int32_t draw(const SampleInput& input);
  void shrink(size_t count, double mass);
  double total_weight() const;

  CpuLevel level_;
  std::vector<float> values_;    // the row, adjusted
  std::vector<double> weights_;  // exp((value − max) / temperature) of the tokens in order_
  std::vector<int32_t> order_;   // tokens not ruled out
  std::vector<int32_t> counts_;  // of tokens; all 0 between calls
};

}  // namespace duet
