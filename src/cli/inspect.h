// What a model is and what it needs, from config.json and the headers of its checkpoint; nothing is
// loaded. Called by `duet inspect`.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace duet {

struct ModelConfig;
struct LlmOptions;

/// Numbers of weights by what they are for, MTP layers left out.
struct ParameterCounts {
  int64_t embedding = 0;  // embed_tokens and, unless tied to it, lm_head
  int64_t attention = 0;
  int64_t dense_mlp = 0;
  int64_t routed_experts = 0;
  int64_t shared_experts = 0;
  int64_t gates = 0;  // correction biases included
  int64_t norms = 0;
  int64_t total() const;
  /// Weights that one token meets: top-k experts instead of all.
  int64_t active = 0;
};
ParameterCounts count_parameters(const ModelConfig& config);

/// Throws what load_config, Checkpoint and plan_memory throw; a machine too small for the plan is a
/// line of the result, not an error.
nlohmann::ordered_json inspect_json(const LlmOptions& options);
/// The same for a reader.
std::string inspect_text(const nlohmann::ordered_json& facts);

}  // namespace duet
