// Chat templates: messages to the prompt that a model was trained on. Our own engine for the part
// of Jinja that the published templates of DeepSeek, Qwen and Llama use, as transformers runs them
// (trim_blocks, lstrip_blocks, loop controls, raise_exception, strftime_now, tojson). What it cannot
// do is refused by name and line, most of it when the template is parsed. A template is code from a
// file: steps, memory, output and nesting are bounded, and exceeding a bound is an Error.
// Used by the engine and the CLI through render_chat; a ChatTemplate is immutable and thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/added_tokens.h"

namespace duet {

class Tokenizer;

/// Ceilings of one rendering; an Error(kResourceExhausted) beyond. The largest published template
/// over a 1 MB conversation stays a hundred times below.
struct ChatLimits {
  int64_t steps = 20'000'000;        // expressions evaluated, elements touched
  int64_t bytes = int64_t{1} << 30;  // of strings and lists built, in sum
  int64_t output_bytes = 256ll << 20;
  int nesting = 300;  // of evaluation, macro calls included
};

struct ChatOptions {
  bool add_generation_prompt = true;
  /// Keeps what came in with the request (every string of messages and tools) from becoming control
  /// tokens: `<｜User｜>` typed by a user is then encoded as ordinary text. Off by default, since
  /// Hugging Face forms control tokens wherever their text stands, and models are measured so; also
  /// with it on, a template's own handling of such text (`</think>` in past answers) loses its token.
  bool escape_control_tokens = false;
  /// JSON array of tools, and JSON object of further variables (`chat_template_kwargs`); empty: none.
  std::string_view tools_json = {};
  std::string_view variables_json = {};
  /// Unix time that strftime_now prints (local time zone); 0 is now.
  int64_t now_seconds = 0;
  /// Which of the checkpoint's templates; empty: "tool_use" when there are tools and it exists, else
  /// "default".
  std::string_view template_name = {};
  ChatLimits limits = {};
};

/// A rendered chat and which of its bytes came from the request.
struct RenderedChat {
  std::string text;
  std::vector<TextSpan> content;  // sorted, disjoint
};

class ChatTemplate {
 public:
  /// Throws Error with the line: kCorrupt for broken syntax, kUnsupported for what is not there.
  static ChatTemplate parse(std::string_view source);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  /// `messages_json`: a JSON array of message objects, as text, since the order of keys shows in
  /// templates that print tools. `tokenizer` (may be null) gives bos_token, eos_token, pad_token,
  /// unk_token. Throws Error(kInvalidArgument) for bad JSON and for what the template raises.
  RenderedChat render(std::string_view messages_json, const ChatOptions& options,
                      const Tokenizer* tokenizer = nullptr) const;

 private:
  struct State;
  explicit ChatTemplate(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

struct ChatPrompt {
  std::string text;
  std::vector<int32_t> ids;
};

/// The text and ids of a rendered chat. No BOS is added beyond what the template prints itself.
ChatPrompt encode_chat(const Tokenizer& tokenizer, const RenderedChat& chat, const ChatOptions& options);

/// Renders with the checkpoint's own template and encodes. Error(kNotFound) when it has none. Parses
/// the template each time: a server keeps a ChatTemplate instead.
ChatPrompt render_chat(const Tokenizer& tokenizer, std::string_view messages_json,
                       const ChatOptions& options);

/// The source of the template that `options` choose; Error(kNotFound) names those there are.
const std::string& choose_chat_template(const Tokenizer& tokenizer, const ChatOptions& options);

}  // namespace duet
