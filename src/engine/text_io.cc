#include "engine/text_io.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <mutex>
#include <optional>
#include <utility>

#include "base/error.h"
#include "text/chat_template.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace duet {

namespace {

class Stream final : public TextStream {
 public:
  Stream(const Tokenizer& tokenizer, bool skip_special) : detokenizer_(tokenizer, skip_special, true) {}
  std::string push(int32_t token) override { return detokenizer_.push(token); }
  std::string finish() override { return detokenizer_.finish(); }

 private:
  Detokenizer detokenizer_;
};

std::string read_template(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(in)), {});
  if (!in && text.empty())
    throw Error(ErrorKind::kNotFound, fmt::format("--chat-template {}: the file cannot be read", file));
  return text;
}

class TextRoom final : public TextIo {
 public:
  explicit TextRoom(const LlmOptions& options)
      : tokenizer_(Tokenizer::load(options.tokenizer.empty() ? options.model : options.tokenizer)) {
    // What the caller names is wrong at once; the checkpoint's own is read when a chat needs it, so
    // that one which we cannot run does not stand in the way of plain prompts.
    if (!options.chat_template.empty()) template_ = ChatTemplate::parse(read_template(options.chat_template));
    chat_.escape_control_tokens = !options.control_tokens_in_content;
  }

  std::vector<int32_t> encode(const Prompt& prompt, std::string* text) const override {
    if (prompt.messages_json.empty()) {
      EncodeOptions options;
      options.add_special_tokens = prompt.add_special_tokens;
      if (text) *text = prompt.text;
      return tokenizer_->encode(prompt.text, options);
    }
    ChatOptions options = chat_;
    options.add_generation_prompt = prompt.add_generation_prompt;
    options.variables_json = prompt.template_variables_json;
    ChatPrompt chat = encode_chat(
        *tokenizer_, chat_template().render(prompt.messages_json, options, tokenizer_.get()), options);
    if (text) *text = std::move(chat.text);
    return std::move(chat.ids);
  }

  std::unique_ptr<TextStream> stream(bool skip_special_tokens) const override {
    return std::make_unique<Stream>(*tokenizer_, skip_special_tokens);
  }

  std::optional<int32_t> eos_token_id() const override { return tokenizer_->eos_id(); }
  std::string decode(const std::vector<int32_t>& ids, bool skip_special_tokens) const override {
    return tokenizer_->decode(ids, skip_special_tokens);
  }
  std::string token_bytes(int32_t id) const override { return std::string(tokenizer_->token_bytes(id)); }

 private:
  const ChatTemplate& chat_template() const {
    std::lock_guard lock(mutex_);
    if (!template_) template_ = ChatTemplate::parse(choose_chat_template(*tokenizer_, chat_));
    return *template_;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  ChatOptions chat_;
  mutable std::mutex mutex_;
  mutable std::optional<ChatTemplate> template_;  // set once
};

}  // namespace

std::unique_ptr<TextIo> load_text_io(const LlmOptions& options) {
  return std::make_unique<TextRoom>(options);
}

}  // namespace duet
