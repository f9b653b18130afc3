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

enum class Finish : uint8_t { kNone, kStop, kLength, kAbort, kError };
/// "stop", "length", "abort", "error"; "" while nothing has ended.
const char* to_string(Finish finish);

/// After `token` was appended: `generated` tokens so far, it included, `length` with the prompt.
/// A stop token before min_tokens, and one that comes with the last allowed token, are settled as
/// vLLM does: ignored, and "stop".
Finish check_token(const ResolvedParams& params, int32_t token, int64_t generated, int64_t length,
                   int64_t max_model_len);

struct StopMatch {
  size_t at = 0;     // where it begins in the text
  size_t index = 0;  // of the stop string
};
/// The first stop string in `text`, of which the last `added` bytes are new; strings that ended before
/// those were looked for earlier. Empty: none yet.
std::optional<StopMatch> find_stop(std::string_view text, size_t added, std::span<const std::string> stops);

/// Bytes at the end of `text` that may be the beginning of a stop string: a stream keeps them back.
size_t held_back(std::string_view text, std::span<const std::string> stops);

}  // namespace duet
