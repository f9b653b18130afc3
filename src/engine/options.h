// From the strings and numbers of LlmOptions to what ranks, scheduler and splitter take. Called once
// by Llm::load; what is wrong is refused here with the flag's name and the values it takes.
#pragma once

#include <cstdint>
#include <string>

#include "duet/llm.h"
#include "engine/planner.h"
#include "engine/rank_group.h"

namespace duet {

/// Throws Error(kInvalidArgument); `vocab_size` bounds the room for logits (all_logits).
RankOptions rank_options(const LlmOptions& options, int64_t vocab_size);

/// Thresholds and split of LlmOptions; throws Error(kInvalidArgument).
SplitPolicy split_policy(const LlmOptions& options);

/// "off", "on" and "auto"; throws Error(kInvalidArgument).
DboMode parse_dbo(const std::string& text);

/// Bytes: "4GiB", "512MB", "1.5g" (k, m, g, t alone are powers of 1024, as vLLM reads them), "1000000".
int64_t parse_bytes(const std::string& text, const char* flag);

/// The model's config: DIR/config.json, or with load_format "dummy" also a config file itself.
ModelConfig read_model_config(const LlmOptions& options);

}  // namespace duet
