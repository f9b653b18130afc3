// Token ids to text while they are being generated: gives back only whole code points, so that a
// stream never shows half of an emoji. All pieces together equal Tokenizer::decode of all ids.
// One per sequence; used by the engine for streaming and stop strings.
#pragma once

#include <cstdint>
#include <string>

namespace duet {

class Tokenizer;

class Detokenizer {
 public:
  /// The tokenizer must outlive this.
  explicit Detokenizer(const Tokenizer& tokenizer, bool skip_special = true)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  /// The text that this id completes; empty while a code point is unfinished.
  std::string push(int32_t id);
  /// What is left at the end: U+FFFD for an unfinished code point, else nothing. Ready for reuse.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;  // the start of a code point, at most 3 bytes
};

}  // namespace duet
