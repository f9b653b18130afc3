#include "engine/params.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace duet {

namespace {

// vLLM's: below this a temperature means greedy (dividing by it would overflow).
constexpr double kGreedyBelow = 1e-5;

template <typename T>
[[noreturn]] void refuse(const char* field, const T& value, const char* allowed) {
  throw Error(ErrorKind::kInvalidArgument, fmt::format("{} is {}, must be {}", field, value, allowed));
}

// NaN fails every comparison, so conditions are written as what must hold.
void check(const ResolvedParams& p) {
  if (!(p.temperature >= 0.0) || std::isinf(p.temperature))
    refuse("temperature", p.temperature, "a number of at least 0 (0: greedy)");
  if (!(p.top_p > 0.0 && p.top_p <= 1.0)) refuse("top_p", p.top_p, "in (0, 1]");
  if (p.top_k < 0) refuse("top_k", p.top_k, "-1 or 0 (all tokens) or at least 1");
  if (!(p.min_p >= 0.0 && p.min_p <= 1.0)) refuse("min_p", p.min_p, "in [0, 1]");
  if (!(p.repetition_penalty > 0.0) || std::isinf(p.repetition_penalty))
    refuse("repetition_penalty", p.repetition_penalty, "above 0 (1: none)");
  if (!(std::abs(p.presence_penalty) <= 2.0)) refuse("presence_penalty", p.presence_penalty, "in [-2, 2]");
  if (!(std::abs(p.frequency_penalty) <= 2.0)) refuse("frequency_penalty", p.frequency_penalty, "in [-2, 2]");
  if (p.n < 1) refuse("n", p.n, "at least 1");
  if (p.n > 1 && p.greedy())
    refuse("n", p.n, "1 with greedy decoding (temperature 0): all continuations would be the same");
  if (p.max_tokens < 1) refuse("max_tokens", p.max_tokens, "at least 1");
  if (p.min_tokens < 0) refuse("min_tokens", p.min_tokens, "at least 0");
  if (p.min_tokens > p.max_tokens)
    throw Error(ErrorKind::kInvalidArgument, fmt::format("min_tokens is {}, must not be above max_tokens, {}",
                                                         p.min_tokens, p.max_tokens));
  for (const std::string& stop : p.stop)
    if (stop.empty()) throw Error(ErrorKind::kInvalidArgument, "stop holds an empty string; leave it out");
}

int checked_logprobs(const char* field, const std::optional<int>& count, int64_t vocab_size) {
  if (!count) return -1;
  if (*count < 0 || *count > vocab_size)
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{} is {}, must be in [0, {}] (the vocabulary)", field, *count, vocab_size));
  return *count;
}

}  // namespace

ResolvedParams resolve_params(const SamplingParams& params, const SamplingDefaults& defaults,
                              uint64_t derived_seed) {
  const GenerationConfig& file = defaults.generation;
  ResolvedParams p;
  p.temperature = params.temperature.value_or(file.temperature.value_or(1.0));
  p.top_p = params.top_p.value_or(file.top_p.value_or(1.0));
  p.top_k = params.top_k ? *params.top_k : file.top_k.value_or(0);
  if (p.top_k == -1) p.top_k = 0;
  p.min_p = params.min_p.value_or(file.min_p.value_or(0.0));
  p.repetition_penalty = params.repetition_penalty.value_or(file.repetition_penalty.value_or(1.0));
  p.presence_penalty = params.presence_penalty;
  p.frequency_penalty = params.frequency_penalty;
  p.seed = params.seed.value_or(derived_seed);
  p.n = params.n;
  p.max_tokens = params.max_tokens;
  p.min_tokens = params.min_tokens;
  p.stop = params.stop;
  p.skip_special_tokens = params.skip_special_tokens;
  if (p.temperature >= 0.0 && p.temperature < kGreedyBelow) p.temperature = 0.0;
  check(p);

  p.include_stop = params.include_stop_str_in_output;
  p.logprobs = checked_logprobs("logprobs", params.logprobs, defaults.vocab_size);
  p.prompt_logprobs = checked_logprobs("prompt_logprobs", params.prompt_logprobs, defaults.vocab_size);
  for (const auto& [id, bias] : params.logit_bias) {
    if (id < 0 || id >= defaults.vocab_size)
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("logit_bias names token {}, the vocabulary has ids 0 to {}", id,
                              defaults.vocab_size - 1));
    if (!(std::abs(bias) <= 100.0)) refuse("logit_bias", bias, "in [-100, 100]");
    p.logit_bias.emplace_back(id, static_cast<float>(bias));
  }
  for (const int32_t id : params.stop_token_ids)
    if (id < 0 || id >= defaults.vocab_size)
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("stop_token_ids holds {}, the vocabulary has ids 0 to {}", id,
                              defaults.vocab_size - 1));
  p.stop_token_ids = p.requested_stop_token_ids = params.stop_token_ids;
  std::sort(p.requested_stop_token_ids.begin(), p.requested_stop_token_ids.end());
  if (!params.ignore_eos)
    for (const int32_t id : defaults.eos_token_ids)
      if (id >= 0 && id < defaults.vocab_size) p.stop_token_ids.push_back(id);
  std::sort(p.stop_token_ids.begin(), p.stop_token_ids.end());
  p.stop_token_ids.erase(std::unique(p.stop_token_ids.begin(), p.stop_token_ids.end()),
                         p.stop_token_ids.end());
  return p;
}

}  // namespace duet
