#include "engine/stop.h"

#include <algorithm>

namespace duet {

const char* to_string(Finish finish) {
  switch (finish) {
    case Finish::kNone: return "";
    case Finish::kStop: return "stop";
    case Finish::kLength: return "length";
  }
  return "";
}

Finish check_token(const ResolvedParams& params, int32_t token, int64_t generated, int64_t length,
                   int64_t max_model_len) {
  if (generated >= params.min_tokens &&
      std::binary_search(params.stop_token_ids.begin(), params.stop_token_ids.end(), token))
    return Finish::kStop;
  if (generated >= params.max_tokens || length >= max_model_len) return Finish::kLength;
  return Finish::kNone;
}

std::optional<size_t> find_stop(std::string_view text, size_t added, std::span<const std::string> stops) {
  std::optional<size_t> first;
  for (const std::string& stop : stops) {
    // A match that ends in the new bytes begins at most stop.size() − 1 bytes before them.
    const size_t back = std::min(text.size(), added + stop.size() - 1);
    const size_t at = text.find(stop, text.size() - back);
    if (at != std::string_view::npos && (!first || at < *first)) first = at;
  }
  return first;
}

}  // namespace duet
