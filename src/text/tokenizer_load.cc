#include <fmt/format.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "text/json_read.h"
#include "text/tokenizer.h"
#include "text/tokenizer_state.h"

namespace duet {

namespace fs = std::filesystem;
using nlohmann::json;

/// Fills a Tokenizer's state, field by field of the two files.
class TokenizerLoader {
 public:
  static std::unique_ptr<Tokenizer> load(const json& file, const json& config,
                                         std::string_view chat_template) {
    TokenizerLoader loader;
    Tokenizer::State& state = loader.state_;
    state.normalizer = Normalizer::parse(member(file, "normalizer"));
    state.decoder = TokenDecoder::parse(member(file, "decoder"));
    state.pre_tokenizer = PreTokenizer::parse(member(file, "pre_tokenizer"));
    state.bpe = Bpe::parse(read_object(file, "model", "$"), state.pre_tokenizer.byte_level());
    if (state.pre_tokenizer.byte_level() != state.decoder.byte_level()) {
      throw Error(ErrorKind::kUnsupported,
                  "tokenizer.json: pre_tokenizer and decoder: only one of them is ByteLevel");
    }
    loader.read_added(member(file, "added_tokens"));
    loader.index_tokens();
    loader.read_config(config);
    loader.read_template(member(file, "post_processor"), "post_processor", 0);
    loader.apply_bos_eos(config);
    loader.read_chat_templates(member(config, "chat_template"), chat_template);
    return std::move(loader.tokenizer_);
  }

 private:
  void read_added(const json& list);
  void index_tokens();
  void read_config(const json& config);
  void read_template(const json& processor, const std::string& path, int depth);
  void apply_bos_eos(const json& config);
  void read_chat_templates(const json& value, std::string_view file);

  std::unique_ptr<Tokenizer> tokenizer_{new Tokenizer};
  Tokenizer::State& state_ = *tokenizer_->state_;
};

namespace {

constexpr uintmax_t kMaxFileBytes = 1ull << 30;

std::string read_file(const fs::path& path) {
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  if (error) {
    throw Error(ErrorKind::kNotFound,
                fmt::format("{}: {}; a checkpoint needs its tokenizer.json (or name one with "
                            "--tokenizer)",
                            path.string(), error.message()));
  }
  if (size > kMaxFileBytes) {
    throw Error(ErrorKind::kCorrupt,
                fmt::format("{}: {} bytes are too many for a tokenizer file", path.string(), size));
  }
  std::ifstream in(path, std::ios::binary);
  std::string content(size, '\0');
  if (!in.read(content.data(), static_cast<std::streamsize>(size))) {
    throw Error(ErrorKind::kNotFound, fmt::format("{}: can't be read", path.string()));
  }
  return content;
}

/// A token of tokenizer_config.json: a string or an AddedToken object.
std::string token_text(const json& config, const char* key) {
  const json& value = member(config, key);
  if (value.is_null()) return {};
  if (value.is_string()) return value.get<std::string>();
  const json& content = member(value, "content");
  if (content.is_string()) return content.get<std::string>();
  throw Error(ErrorKind::kCorrupt,
              fmt::format("tokenizer_config.json: {} should be a string or an object with \"content\"", key));
}

}  // namespace

void TokenizerLoader::read_added(const json& list) {
  if (list.is_null()) return;
  if (!list.is_array()) throw Error(ErrorKind::kCorrupt, "tokenizer.json: added_tokens should be an array");
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string path = fmt::format("added_tokens[{}]", i);
    AddedToken token;
    token.content = read_string(list[i], "content", path);
    if (token.content.empty()) continue;  // Hugging Face skips these too
    token.id = read_id(member(list[i], "id"), path + ".id");
    token.special = read_bool(list[i], "special", path, false);
    token.lstrip = read_bool(list[i], "lstrip", path, false);
    token.rstrip = read_bool(list[i], "rstrip", path, false);
    token.single_word = read_bool(list[i], "single_word", path, false);
    token.normalized = read_bool(list[i], "normalized", path, !token.special);
    const auto in_vocab = state_.bpe.vocab().find(token.content);
    if (in_vocab != state_.bpe.vocab().end() && in_vocab->second != token.id) {
      throw Error(ErrorKind::kCorrupt,
                  fmt::format("tokenizer.json: {} gives \"{}\" the id {}, model.vocab gives it {}", path,
                              token.content, token.id, in_vocab->second));
    }
    state_.added.push_back(token);
    if (!token.normalized) {
      state_.raw_added.add(token);
      continue;
    }
    // Looked for in normalised text, so it is normalised as well.
    token.content = state_.normalizer.apply(token.content);
    state_.normalized_added.add(token);
  }
}

void TokenizerLoader::index_tokens() {
  int32_t max_id = state_.bpe.max_id();
  for (const AddedToken& token : state_.added) max_id = std::max(max_id, token.id);
  state_.tokens.resize(max_id + 1);
  const auto set = [&](int32_t id, std::string_view token) {
    const std::string bytes = state_.decoder.bytes_of(token);
    state_.tokens[id].begin = static_cast<uint32_t>(state_.bytes.size());
    state_.tokens[id].size = static_cast<uint32_t>(bytes.size());
    state_.tokens[id].known = true;
    state_.bytes += bytes;
  };
  for (const auto& [token, id] : state_.bpe.vocab()) set(id, token);
  for (const AddedToken& token : state_.added) {
    set(token.id, token.content);
    state_.tokens[token.id].added = true;
    state_.tokens[token.id].special = token.special;
  }
}

void TokenizerLoader::read_config(const json& config) {
  const auto set = [&](Tokenizer::State::Special& special, const char* key) {
    special.text = token_text(config, key);
    if (!special.text.empty()) special.id = tokenizer_->token_id(special.text);
  };
  set(state_.bos, "bos_token");
  set(state_.eos, "eos_token");
  set(state_.pad, "pad_token");
  set(state_.unk, "unk_token");
}

void TokenizerLoader::read_template(const json& processor, const std::string& path, int depth) {
  check_nesting(depth, path);
  if (processor.is_null()) return;
  const std::string type = read_string(processor, "type", path);
  if (type == "ByteLevel") return;  // moves offsets only
  if (type == "Sequence") {
    const json& list = read_array(processor, "processors", path);
    for (size_t i = 0; i < list.size(); ++i) {
      read_template(list[i], fmt::format("{}.processors[{}]", path, i), depth + 1);
    }
    return;
  }
  if (type != "TemplateProcessing") {
    throw Error(
        ErrorKind::kUnsupported,
        fmt::format("tokenizer.json: {}.type \"{}\" is not supported (TemplateProcessing, ByteLevel and "
                    "Sequence are)",
                    path, type));
  }
  const json& single = read_array(processor, "single", path);
  const json& specials = member(processor, "special_tokens");
  bool behind = false;
  for (size_t i = 0; i < single.size(); ++i) {
    if (single[i].is_object() && single[i].contains("Sequence")) {
      behind = true;
      continue;
    }
    const std::string here = fmt::format("{}.single[{}]", path, i);
    const std::string name =
        read_string(read_object(single[i], "SpecialToken", here), "id", here + ".SpecialToken");
    const json& ids =
        read_array(member(specials, name.c_str()), "ids", path + ".special_tokens[\"" + name + "\"]");
    for (const json& id : ids) {
      (behind ? state_.suffix : state_.prefix)
          .push_back(read_id(id, path + ".special_tokens[\"" + name + "\"].ids"));
    }
  }
  if (!behind)
    throw Error(ErrorKind::kCorrupt, fmt::format("tokenizer.json: {}.single has no Sequence", path));
}

void TokenizerLoader::apply_bos_eos(const json& config) {
  const json& name = member(config, "tokenizer_class");
  const bool llama = name == "LlamaTokenizer" || name == "LlamaTokenizerFast";
  // The config's flags, where it has any (or its class implies them), replace the post-processor.
  if (!llama && member(config, "add_bos_token").is_null() && member(config, "add_eos_token").is_null())
    return;
  state_.prefix.clear();
  state_.suffix.clear();
  const auto add = [&](const char* flag, bool fallback, const char* key,
                       const Tokenizer::State::Special& special, std::vector<int32_t>& where) {
    const json& value = member(config, flag);
    if (!value.is_null() && !value.is_boolean()) {
      throw Error(ErrorKind::kCorrupt,
                  fmt::format("tokenizer_config.json: {} should be true or false", flag));
    }
    if (!(value.is_null() ? fallback : value.get<bool>()) || special.text.empty()) return;
    if (!special.id) {
      throw Error(ErrorKind::kCorrupt,
                  fmt::format("tokenizer_config.json: {} asks for {} \"{}\", which tokenizer.json "
                              "does not have",
                              flag, key, special.text));
    }
    where.push_back(*special.id);
  };
  add("add_bos_token", llama, "bos_token", state_.bos, state_.prefix);
  add("add_eos_token", false, "eos_token", state_.eos, state_.suffix);
}

void TokenizerLoader::read_chat_templates(const json& value, std::string_view file) {
  if (!file.empty()) {
    state_.chat_templates.emplace_back("default", file);
    return;
  }
  if (value.is_null()) return;
  if (value.is_string()) {
    state_.chat_templates.emplace_back("default", value.get<std::string>());
    return;
  }
  if (value.is_array()) {
    for (const json& entry : value) {
      const json &name = member(entry, "name"), &text = member(entry, "template");
      if (!name.is_string() || !text.is_string()) {
        throw Error(ErrorKind::kCorrupt,
                    "tokenizer_config.json: chat_template[] needs \"name\" and \"template\"");
      }
      state_.chat_templates.emplace_back(name.get<std::string>(), text.get<std::string>());
    }
    return;
  }
  throw Error(ErrorKind::kCorrupt,
              "tokenizer_config.json: chat_template should be a string or a list of named templates");
}

std::unique_ptr<Tokenizer> Tokenizer::load(const fs::path& path) {
  std::error_code error;
  const bool directory = fs::is_directory(path, error);
  const fs::path folder = directory ? path : path.parent_path();
  const auto optional_file = [&](const char* name) {
    return fs::exists(folder / name, error) ? read_file(folder / name) : std::string();
  };
  const std::string file = read_file(directory ? path / "tokenizer.json" : path);
  try {
    return from_json(file, optional_file("tokenizer_config.json"), optional_file("chat_template.jinja"));
  } catch (const Error& e) {
    throw Error(e.kind(), fmt::format("{}/{}", folder.string(), e.what()));
  }
}

std::unique_ptr<Tokenizer> Tokenizer::from_json(std::string_view tokenizer_json, std::string_view config_json,
                                                std::string_view chat_template_jinja) {
  const json file = parse_json(tokenizer_json, "tokenizer.json");
  const json config = config_json.empty() ? json() : parse_json(config_json, "tokenizer_config.json");
  return TokenizerLoader::load(file, config, chat_template_jinja);
}

}  // namespace duet
