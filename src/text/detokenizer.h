// Token ids to text while they are being generated: gives back only whole code points, so that a
// stream never shows half of an emoji. All pieces together equal Tokenizer::decode of all ids; a continuation
// keeps the leading space that decode() strips, since it is what parts it from the prompt.
// One per sequence; used by the engine for streaming and stop strings.
#pragma once

#include <cstdint>
#include <string>

namespace duet {

class Tokenizer;

class Detokenizer {
 public:
  /// The tokenizer must outlive this.
  explicit Detokenizer(const Tokenizer& tokenizer, bool skip_special = true, bool continuation = false)
      : tokenizer_(&tokenizer), skip_special_(skip_special), at_start_(!continuation) {
    reset();
  }

  /// The text that this id completes; empty while a code point is unfinished.
  std::string push(int32_t id);
  /// What is left at the end: U+FFFD for an unfinished code point, else nothing. Ready for reuse.
  std::string finish();

 private:
  void reset();

  const Tokenizer* tokenizer_;
  bool skip_special_;
  bool at_start_;        // the ids are a whole text
  size_t strip_ = 0;     // spaces that the next bytes still lose
  std::string pending_;  // the start of a code point, at most 3 bytes
};

}  // namespace duet
