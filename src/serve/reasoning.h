// Splits what a model that thinks aloud writes, "<think>…</think>answer", into reasoning and answer, piece by
// piece as it streams. Used by Reply, one per continuation. No part of a tag is ever handed out.
#pragma once

#include <cstdint>
#include <string>

namespace duet {

enum class ReasoningStyle : uint8_t {
  kNone,
  kDeepSeekR1,  // thinks from the start: the template may have written <think> already
  kQwen3,       // thinks only where it writes <think> first
};

class ReasoningSplitter {
 public:
  explicit ReasoningSplitter(ReasoningStyle style = ReasoningStyle::kNone)
      : style_(style), state_(style == ReasoningStyle::kNone ? State::kContent : State::kStart) {}

  struct Parts {
    std::string reasoning, content;
  };
  /// What became certain with this text; with `last`, all that is left.
  Parts push(const std::string& text, bool last);

 private:
  enum class State : uint8_t { kStart, kReasoning, kContent };
  bool start(bool last);
  bool reasoning(Parts& parts, bool last);

  ReasoningStyle style_;
  State state_;
  std::string held_;  // perhaps the beginning of a tag
};

}  // namespace duet
