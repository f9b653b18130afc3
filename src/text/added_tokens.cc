#include "text/added_tokens.h"

#include <algorithm>
#include <cwctype>

#include "text/utf8.h"

namespace duet {

namespace {

/// \w of Unicode, near enough: ASCII exactly, above it everything but white space and the general
/// punctuation blocks. Only single_word tokens ask.
bool is_word(char32_t code) {
  if (code < 0x80)
    return code == '_' || (code >= '0' && code <= '9') || ((code | 0x20) >= 'a' && (code | 0x20) <= 'z');
  if (is_space(code)) return false;
  return !((code >= 0x2000 && code <= 0x206F) || (code >= 0x3000 && code <= 0x3004) ||
           (code >= 0xFF00 && code <= 0xFF0F) ||
           (code >= 0x80 && code <= 0xBF && code != 0xAA && code != 0xB5 && code != 0xBA));
}

size_t previous_start(std::string_view text, size_t at) {
  do {
    --at;
  } while (at > 0 && is_continuation(text[at]));
  return at;
}

bool word_before(std::string_view text, size_t at) {
  if (at == 0) return false;
  size_t start = previous_start(text, at);
  return is_word(next_code_point(text, start));
}

bool word_after(std::string_view text, size_t at) {
  return at < text.size() && is_word(next_code_point(text, at));
}

size_t skip_space_left(std::string_view text, size_t at, size_t floor) {
  while (at > floor) {
    const size_t start = previous_start(text, at);
    size_t end = start;
    if (!is_space(next_code_point(text, end))) break;
    at = start;
  }
  return at;
}

size_t skip_space_right(std::string_view text, size_t at) {
  while (at < text.size()) {
    size_t end = at;
    if (!is_space(next_code_point(text, end))) break;
    at = end;
  }
  return at;
}

}  // namespace

int32_t AddedTokens::child(int32_t node, uint8_t byte) const {
  const auto& children = nodes_[node].children;
  const auto found = std::lower_bound(children.begin(), children.end(), byte,
                                      [](const auto& entry, uint8_t value) { return entry.first < value; });
  return found != children.end() && found->first == byte ? found->second : -1;
}

void AddedTokens::add(const AddedToken& token) {
  int32_t node = 0;
  for (char c : token.content) {
    const auto byte = static_cast<uint8_t>(c);
    int32_t next = child(node, byte);
    if (next < 0) {
      next = static_cast<int32_t>(nodes_.size());
      nodes_.emplace_back();
      auto& children = nodes_[node].children;
      children.insert(std::upper_bound(children.begin(), children.end(), std::pair{byte, int32_t{-1}}),
                      {byte, next});
    }
    node = next;
  }
  starts_[static_cast<uint8_t>(token.content[0])] = 1;
  nodes_[node].token = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
}

int32_t AddedTokens::longest(std::string_view text, size_t at, size_t limit) const {
  int32_t node = 0, best = -1;
  for (size_t i = at; i < limit; ++i) {
    node = child(node, static_cast<uint8_t>(text[i]));
    if (node < 0) break;
    if (nodes_[node].token >= 0) best = nodes_[node].token;
  }
  return best;
}

void AddedTokens::split(std::string_view text, size_t offset, std::span<const TextSpan> literal,
                        std::vector<Piece>& pieces) const {
  size_t done = 0;
  const auto emit_text = [&](size_t end) {
    if (done < end) pieces.push_back({offset + done, offset + end, -1});
  };
  size_t next_literal = 0;
  for (size_t at = tokens_.empty() ? text.size() : 0; at < text.size();) {
    while (next_literal < literal.size() && literal[next_literal].end <= offset + at) ++next_literal;
    size_t limit = text.size();
    if (next_literal < literal.size() && literal[next_literal].begin < offset + text.size()) {
      if (literal[next_literal].begin <= offset + at) {  // inside: nothing may start here
        at = std::min(text.size(), literal[next_literal].end - offset);
        continue;
      }
      limit = literal[next_literal].begin - offset;
    }
    if (!starts_[static_cast<uint8_t>(text[at])]) {
      ++at;
      continue;
    }
    const int32_t index = longest(text, at, limit);
    if (index < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[index];
    size_t begin = at, end = at + token.content.size();
    at = end;  // matches do not overlap, even those that the flags reject
    if (token.single_word && (word_before(text, begin) || word_after(text, end))) continue;
    // White space that an earlier token's rstrip took is gone already.
    if (token.lstrip) begin = skip_space_left(text, begin, std::min(begin, done));
    if (token.rstrip) end = skip_space_right(text, end);
    emit_text(begin);
    pieces.push_back({offset + begin, offset + end, token.id});
    done = end;
  }
  emit_text(text.size());
}

}  // namespace duet
