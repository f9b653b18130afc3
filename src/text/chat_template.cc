#include "text/chat_template.h"

#include <fmt/format.h>

#include <ctime>

#include "base/error.h"
#include "text/jinja/interpreter.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace duet {

namespace {

constexpr size_t kMaxTemplateBytes = 1 << 20;  // published ones are under 20 kB

}  // namespace

struct ChatTemplate::State {
  jinja::Body body;
};

ChatTemplate::ChatTemplate(std::unique_ptr<State> state) : state_(std::move(state)) {}
ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

ChatTemplate ChatTemplate::parse(std::string_view source) {
  if (source.size() > kMaxTemplateBytes) {
    throw Error(ErrorKind::kUnsupported, fmt::format("a chat template of {} bytes, at most {} are supported",
                                                     source.size(), kMaxTemplateBytes));
  }
  if (!is_valid_utf8(source)) throw Error(ErrorKind::kCorrupt, "the chat template is not valid UTF-8");
  auto state = std::make_unique<State>();
  state->body = jinja::parse(source);
  return ChatTemplate(std::move(state));
}

RenderedChat ChatTemplate::render(std::string_view messages_json, const ChatOptions& options,
                                  const Tokenizer* tokenizer) const {
  jinja::Runtime rt;
  rt.left = options.limits;
  rt.now_seconds = options.now_seconds != 0 ? options.now_seconds : static_cast<int64_t>(std::time(nullptr));
  jinja::Interpreter interpreter(rt);
  const jinja::Value messages = jinja::from_json(rt, messages_json, true, "messages");
  if (jinja::as_list(messages) == nullptr)
    throw Error(ErrorKind::kInvalidArgument, "messages: should be a JSON array");
  interpreter.define("messages", messages);
  interpreter.define("add_generation_prompt", options.add_generation_prompt);
  interpreter.define("tools", jinja::None{});
  interpreter.define("documents", jinja::None{});
  if (tokenizer != nullptr) {
    const auto define = [&](const char* name, std::string_view token) {
      if (!token.empty()) interpreter.define(name, rt.string(token));
    };
    define("bos_token", tokenizer->bos_token());
    define("eos_token", tokenizer->eos_token());
    define("pad_token", tokenizer->pad_token());
    define("unk_token", tokenizer->unk_token());
  }
  if (!options.tools_json.empty()) {
    const jinja::Value tools = jinja::from_json(rt, options.tools_json, true, "tools");
    if (jinja::as_list(tools) == nullptr && !jinja::is<jinja::None>(tools)) {
      throw Error(ErrorKind::kInvalidArgument, "tools: should be a JSON array");
    }
    interpreter.define("tools", tools);
  }
  if (!options.variables_json.empty()) {
    const jinja::Value variables = jinja::from_json(rt, options.variables_json, true, "chat_template_kwargs");
    const jinja::Dict* dict = jinja::as_dict(variables);
    if (dict == nullptr)
      throw Error(ErrorKind::kInvalidArgument, "chat_template_kwargs: should be a JSON object");
    for (const auto& [name, value] : dict->items) interpreter.define(name->text, value);
  }
  jinja::Str text = interpreter.run(state_->body);
  return {std::move(text.text), std::move(text.literal)};
}

const std::string& choose_chat_template(const Tokenizer& tokenizer, const ChatOptions& options) {
  const auto& templates = tokenizer.chat_templates();
  const auto find = [&](std::string_view name) -> const std::string* {
    for (const auto& entry : templates) {
      if (entry.first == name) return &entry.second;
    }
    return nullptr;
  };
  const std::string* found = nullptr;
  if (!options.template_name.empty()) {
    found = find(options.template_name);
  } else {
    if (!options.tools_json.empty()) found = find("tool_use");
    if (found == nullptr) found = find("default");
  }
  if (found != nullptr) return *found;
  std::string names;
  for (const auto& entry : templates) names += (names.empty() ? "" : ", ") + entry.first;
  throw Error(ErrorKind::kNotFound,
              fmt::format("no chat template \"{}\" (this checkpoint has: {}); give one with --chat-template",
                          options.template_name.empty() ? "default" : options.template_name,
                          names.empty() ? "none" : names));
}

ChatPrompt encode_chat(const Tokenizer& tokenizer, const RenderedChat& chat, const ChatOptions& options) {
  EncodeOptions encode;
  if (options.escape_control_tokens) encode.literal = chat.content;
  return {chat.text, tokenizer.encode(chat.text, encode)};
}

ChatPrompt render_chat(const Tokenizer& tokenizer, std::string_view messages_json,
                       const ChatOptions& options) {
  const ChatTemplate chat_template = ChatTemplate::parse(choose_chat_template(tokenizer, options));
  return encode_chat(tokenizer, chat_template.render(messages_json, options, &tokenizer), options);
}

}  // namespace duet
