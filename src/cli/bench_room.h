// Room for the steps that a benchmark makes up. Called by the bench verbs.
#pragma once

#include <cstdint>

#include "duet/llm.h"
#include "engine/rank_group.h"

namespace duet {

/// Ranks that take steps of `rows`, each with logits, and hold `blocks` of KV cache, whatever the flags'
/// defaults; --kv-cache-memory, where given, is kept. Throws what rank_options throws.
RankOptions options_with_room(LlmOptions options, const ModelConfig& config, int64_t rows, int64_t blocks);

}  // namespace duet
