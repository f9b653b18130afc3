#include "cli/tokenize.h"

#include <fmt/format.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json_text.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace duet {
namespace {

using nlohmann::ordered_json;  // the order of a message's keys shows in templates that print tools

std::string read_template(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(ErrorKind::kNotFound, fmt::format("cannot read the chat template {}", path));
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string dump(const ordered_json& row) {
  return json_text(row);
}

bool add_generation_prompt(const ordered_json& row, const std::string& where) {
  const auto found = row.find("add_generation_prompt");
  if (found == row.end() || found->is_null()) return false;
  if (!found->is_boolean()) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}: \"add_generation_prompt\" must be true or false", where));
  }
  return found->get<bool>();
}

}  // namespace

LineTokenizer::LineTokenizer(TokenizeOptions options)
    : options_(std::move(options)), tokenizer_(Tokenizer::load(options_.tokenizer)) {
  if (!options_.chat_template.empty()) {
    chat_ = std::make_unique<ChatTemplate>(ChatTemplate::parse(read_template(options_.chat_template)));
  }
}

LineTokenizer::~LineTokenizer() = default;

const ChatTemplate& LineTokenizer::chat() {
  if (!chat_) {
    chat_ =
        std::make_unique<ChatTemplate>(ChatTemplate::parse(choose_chat_template(*tokenizer_, ChatOptions{})));
  }
  return *chat_;
}

std::string LineTokenizer::line(const std::string& json, const std::string& where) {
  const ordered_json row = try_ordered_json(json);
  if (row.is_discarded() || !row.is_object()) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("{}: not a JSON object", where));
  }
  if (row.contains("messages")) {
    if (!row["messages"].is_array()) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("{}: \"messages\" must be a list of {{\"role\", \"content\"}}", where));
    }
    ChatOptions how;
    how.add_generation_prompt = add_generation_prompt(row, where);
    how.escape_control_tokens = !options_.control_tokens_in_content;
    const std::string tools = row.contains("tools") && !row["tools"].is_null() ? json_text(row["tools"]) : "";
    how.tools_json = tools;
    try {
      const ChatPrompt prompt =
          encode_chat(*tokenizer_, chat().render(json_text(row["messages"]), how, tokenizer_.get()), how);
      return dump({{"text", prompt.text}, {"ids", prompt.ids}});
    } catch (const Error& error) {
      throw Error(error.kind(), fmt::format("{}: {}", where, error.what()));
    }
  }
  if (!row.contains("text") || !row["text"].is_string()) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}: neither \"text\" (a string) nor \"messages\" (a list); expected one of them",
                            where));
  }
  EncodeOptions how;
  how.add_special_tokens = options_.add_special_tokens;
  const std::vector<int32_t> ids = tokenizer_->encode(row["text"].get_ref<const std::string&>(), how);
  return dump({{"ids", ids}, {"decoded", tokenizer_->decode(ids, false)}});
}

}  // namespace duet
