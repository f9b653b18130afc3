// Runs prompts through a RankGroup in any cut a test asks for and returns every logit.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/rank_group.h"

namespace duet {

struct Golden {
  std::vector<std::vector<int32_t>> prompts;
  std::vector<std::vector<int32_t>> greedy;
  std::vector<std::vector<float>> logits;  // per prompt [tokens, vocab]
  int64_t vocab = 0;
};
/// tests/fixtures/golden/<name>: see its README.
Golden load_golden(const std::string& name);
std::string golden_dir(const std::string& name);

/// Golden models of every family: what each must hold to, all of them are asked for. A new family adds its
/// line here.
inline constexpr const char* kFamilies[] = {
    "v3-tiny",    "v2-tiny",      "v2lite-tiny",  // DeepSeek
    "llama-tiny", "mistral-tiny", "mixtral-tiny", "qwen2-tiny", "qwen3-tiny", "qwen3moe-tiny",
};

/// Starts a group with thread ranks, or, in a binary that runs under mpirun, with its processes. Null
/// where there is nothing to check: on MPI ranks other than 0, and when the job has another size.
std::unique_ptr<RankGroup> start_group(RankOptions options);

/// What most cases start from: float32 weights and wire, one thread per rank, steps of up to 512 rows.
RankOptions golden_options(const std::string& model_dir, int ranks, ExpertPath path);

/// How prompts are cut into steps and steps into micro-batches.
struct Cut {
  int64_t chunk = 0;    // > 0: so many tokens of each prompt per step
  bool decode = false;  // one token per prompt and step, absorbed attention
  std::vector<int64_t>
      borders;            // inner borders of micro-batches (rows of each step); those that fit are used
  int micro_batches = 1;  // without borders: equal parts of the rows
  bool overlap = false;
  int64_t max_rows = 2048;
};

using Logits = std::vector<std::vector<float>>;

/// logits[i]: [tokens of prompt i, vocab]. Blocks are handed out scattered, so that nothing can rely
/// on neighbouring ones.
Logits run_prompts(RankGroup& group, const std::vector<std::vector<int32_t>>& prompts, const Cut& cut);

/// ‖x − y‖ / ‖y‖.
double relative_error(const std::vector<float>& x, const std::vector<float>& y);
/// relative_error of each token's row of logits, over all prompts, ascending.
std::vector<double> token_errors(const Logits& x, const Logits& y, int64_t vocab);
bool same_bits(const Logits& a, const Logits& b);

/// `count` seeded random tokens.
std::vector<int32_t> random_tokens(int64_t count, int64_t vocab, unsigned seed);

}  // namespace duet
