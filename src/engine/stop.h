// When a continuation ends: stop tokens, length, stop strings. Called by Llm for each new token,
// and for each new piece of text. Order as in vLLM: nothing but length ends before min_tokens.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/params.h"

namespace duet {

enum class Finish : uint8_t { kNone, kStop, kLength };
/// "stop", "length"; "" while nothing has ended.
const char* to_string(Finish finish);

/// After `token` was appended: `generated` tokens so far, it included, `length` with the prompt.
/// A stop token before min_tokens, and one that comes with the last allowed token, are settled as
/// vLLM does: ignored, and "stop".
Finish check_token(const ResolvedParams& params, int32_t token, int64_t generated, int64_t length,
                   int64_t max_model_len);

/// Where the first stop string begins in `text`, of which the last `added` bytes are new; strings
/// that ended before those were looked for earlier. Empty: none yet.
std::optional<size_t> find_stop(std::string_view text, size_t added, std::span<const std::string> stops);

}  // namespace duet
