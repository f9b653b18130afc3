#include "serve/reasoning.h"

#include <algorithm>
#include <string_view>

namespace duet {

namespace {

constexpr std::string_view kBegin = "<think>", kEnd = "</think>";

// How much of the end of `text` could be the beginning of `tag`.
size_t begun(std::string_view text, std::string_view tag) {
  for (size_t size = std::min(text.size(), tag.size() - 1); size > 0; --size) {
    if (text.ends_with(tag.substr(0, size))) return size;
  }
  return 0;
}

}  // namespace

// True when it is known whether the text begins with <think>.
bool ReasoningSplitter::start(bool last) {
  const size_t first = held_.find_first_not_of(" \t\r\n");
  const std::string_view text =
      first == std::string::npos ? std::string_view() : std::string_view(held_).substr(first);
  if (text.starts_with(kBegin)) {
    held_.erase(0, first + kBegin.size());
    state_ = State::kReasoning;
    return true;
  }
  if (kBegin.starts_with(text) && !last) return false;
  state_ = style_ == ReasoningStyle::kDeepSeekR1 ? State::kReasoning : State::kContent;
  return true;
}

// True when the reasoning is over.
bool ReasoningSplitter::reasoning(Parts& parts, bool last) {
  const size_t end = held_.find(kEnd);
  const size_t sure = end != std::string::npos ? end : held_.size() - (last ? 0 : begun(held_, kEnd));
  parts.reasoning += held_.substr(0, sure);
  held_.erase(0, end != std::string::npos ? end + kEnd.size() : sure);
  if (end == std::string::npos) return false;
  state_ = State::kContent;
  return true;
}

ReasoningSplitter::Parts ReasoningSplitter::push(const std::string& text, bool last) {
  Parts parts;
  held_ += text;
  if (state_ == State::kStart && !start(last)) return parts;
  if (state_ == State::kReasoning && !reasoning(parts, last)) return parts;
  parts.content += held_;
  held_.clear();
  return parts;
}

}  // namespace duet
