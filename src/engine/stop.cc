#include "engine/stop.h"

#include <algorithm>

namespace duet {

const char* to_string(Finish finish) {
  switch (finish) {
    case Finish::kNone: return "";
    case Finish::kStop: return "stop";
    case Finish::kLength: return "length";
    case Finish::kAbort: return "abort";
    case Finish::kError: return "error";
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

std::optional<StopMatch> find_stop(std::string_view text, size_t added, std::span<const std::string> stops) {
  std::optional<StopMatch> first;
  for (size_t i = 0; i < stops.size(); ++i) {
    // A match that ends in the new bytes begins at most stop.size() − 1 bytes before them.
    const size_t back = std::min(text.size(), added + stops[i].size() - 1);
    const size_t at = text.find(stops[i], text.size() - back);
    if (at != std::string_view::npos && (!first || at < first->at)) first = StopMatch{at, i};
  }
  return first;
}

size_t held_back(std::string_view text, std::span<const std::string> stops) {
  size_t most = 0;
  for (const std::string_view stop : stops) {
    for (size_t size = std::min(text.size(), stop.size() - 1); size > most; --size)
      if (text.ends_with(stop.substr(0, size))) most = size;
  }
  return most;
}

}  // namespace duet
