// TextIo: what the engine needs of the text room. Prompts to token ids, and one TextStream per
// continuation back to text. Absent with skip_tokenizer_init. Several threads may ask at once.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "duet/llm.h"

namespace duet {

/// Text of one continuation as its tokens arrive; whole UTF-8 characters only.
class TextStream {
 public:
  virtual ~TextStream() = default;
  /// The text that `token` completes; may be empty.
  virtual std::string push(int32_t token) = 0;
  /// What is left, with U+FFFD for bytes that never became a character.
  virtual std::string finish() = 0;
};

class TextIo {
 public:
  virtual ~TextIo() = default;
  /// Ids of text (with the model's BOS rule) or of chat messages (with the chat template, which writes
  /// its own BOS); `text` receives what was tokenised. The prompt holds no token_ids.
  virtual std::vector<int32_t> encode(const Prompt& prompt, std::string* text) const = 0;
  virtual std::unique_ptr<TextStream> stream(bool skip_special_tokens) const = 0;
  virtual std::optional<int32_t> eos_token_id() const = 0;
  /// The text of ids, and the bytes of one token (perhaps a part of a character).
  virtual std::string decode(const std::vector<int32_t>& ids, bool skip_special_tokens) const = 0;
  virtual std::string token_bytes(int32_t id) const = 0;
};

/// Reads the tokenizer of LlmOptions::tokenizer, else of the model's directory.
std::unique_ptr<TextIo> load_text_io(const LlmOptions& options);

}  // namespace duet
