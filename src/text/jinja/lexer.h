// A chat template's source as tokens, with Jinja's white-space control as Hugging Face sets it
// (trim_blocks, lstrip_blocks, one newline at the end dropped).
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace duet::jinja {

enum class TokenType {
  kText,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd
};

struct Token {
  TokenType type;
  std::string text;
  int line;
};

/// Throws Error(kCorrupt) with the line.
std::vector<Token> tokenize(std::string_view source);

}  // namespace duet::jinja
