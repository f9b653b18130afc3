// Text ↔ token ids as Hugging Face's fast tokenizers do it, from a checkpoint's tokenizer.json and
// tokenizer_config.json: BPE over bytes or over characters, with added tokens. Used by the engine, the server
// and the CLI. A Tokenizer is immutable after loading and may encode and decode from several threads at once.
// What a file asks for and we cannot do is refused at load time by name and JSON path; never ignored.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/added_tokens.h"

namespace duet {

struct EncodeOptions {
  /// Add what the checkpoint adds to a plain prompt: BOS/EOS by `add_bos_token`/`add_eos_token` of
  /// tokenizer_config.json, else by tokenizer.json's post_processor.
  bool add_special_tokens = false;
  /// Byte ranges (sorted, disjoint) in which no added token may form, nor across their borders:
  /// `<｜User｜>` typed there becomes ordinary text. Text outside forms added tokens as always.
  std::span<const TextSpan> literal = {};
};

class Tokenizer {
 public:
  /// A checkpoint directory, or a tokenizer.json (files beside it are used too). tokenizer.json is
  /// required; tokenizer_config.json and chat_template.jinja are read when there.
  /// Throws Error: kNotFound, kCorrupt, kUnsupported.
  static std::unique_ptr<Tokenizer> load(const std::filesystem::path& path);
  /// The same from the files' contents; an empty config or template counts as absent.
  static std::unique_ptr<Tokenizer> from_json(std::string_view tokenizer_json,
                                              std::string_view config_json = {},
                                              std::string_view chat_template_jinja = {});
  ~Tokenizer();

  /// Hugging Face's ids for the text. Invalid UTF-8 is repaired first (each maximal invalid part
  /// becomes U+FFFD), except that with `literal` spans it is an Error(kInvalidArgument).
  /// O(n log n) for any text; texts over 1 GiB are refused.
  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options = {}) const;

  /// The text of ids, as Hugging Face decodes with clean_up_tokenization_spaces = false (that
  /// heuristic is never applied). Invalid bytes become U+FFFD; ids without a token give nothing.
  std::string decode(std::span<const int32_t> ids, bool skip_special) const;

  /// The bytes that a token stands for, perhaps a part of a code point; empty for unknown ids.
  std::string_view token_bytes(int32_t id) const;
  /// The id of an added token's content or of a vocabulary entry as tokenizer.json spells it.
  std::optional<int32_t> token_id(std::string_view token) const;
  bool is_special(int32_t id) const;  // added with special = true
  bool is_added(int32_t id) const;    // any added token

  /// Spaces that decode() takes from the front of a text, where they are (SentencePiece's leading space).
  size_t strip_start() const;

  /// Largest id + 1. A model's vocab_size may be larger (padding).
  int32_t vocab_size() const;
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  std::optional<int32_t> pad_id() const;
  std::string_view bos_token() const;  // empty when there is none
  std::string_view eos_token() const;
  std::string_view pad_token() const;
  std::string_view unk_token() const;
  /// Whether encode(add_special_tokens) puts bos_id() in front.
  bool add_bos_token() const;
  bool add_eos_token() const;

  /// chat_template.jinja, else chat_template of the config, by name ("default", "tool_use", …) in
  /// file order; empty when the checkpoint has none.
  const std::vector<std::pair<std::string, std::string>>& chat_templates() const;

 private:
  friend class TokenizerLoader;
  Tokenizer();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace duet
