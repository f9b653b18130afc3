// Lines of JSON through a tokenizer: what `duet tokenize` does to each line. Pure, apart from
// loading the tokenizer.
#pragma once

#include <memory>
#include <string>

namespace duet {

class ChatTemplate;
class Tokenizer;

struct TokenizeOptions {
  std::string tokenizer;      // directory, or a tokenizer.json
  std::string chat_template;  // a file; empty: the tokenizer's own
  bool add_special_tokens = false;
  bool control_tokens_in_content = true;
};

class LineTokenizer {
 public:
  /// Throws what Tokenizer and ChatTemplate throw. A tokenizer without a template works until a line
  /// has messages.
  explicit LineTokenizer(TokenizeOptions options);
  ~LineTokenizer();

  /// {"text"} → {"ids", "decoded"}; {"messages", "add_generation_prompt"} → {"text", "ids"}; exactly
  /// these fields, on one line. `where` is "FILE:LINE" for messages. Throws Error.
  std::string line(const std::string& json, const std::string& where);

 private:
  const ChatTemplate& chat();
  TokenizeOptions options_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_;
};

}  // namespace duet
