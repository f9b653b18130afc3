// The `normalizer` of tokenizer.json: what happens to a text before it is cut into words. NFC, NFD, NFKC,
// NFKD, Replace, Prepend, and Sequence of them; anything else is refused by name and JSON path. Immutable
// after parsing.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/added_tokens.h"
#include "text/regex.h"

namespace duet {

class Normalizer {
 public:
  /// `json` is the normalizer object or null. Throws Error(kUnsupported) or Error(kCorrupt).
  static Normalizer parse(const nlohmann::json& json);

  bool empty() const { return steps_.empty(); }
  /// Valid UTF-8 text, normalised.
  std::string apply(std::string_view text) const;
  /// The same for a piece [offset, offset + text.size()) of a text, with its spans of literal text: each run
  /// inside or outside a span is normalised on its own, and `spans` receives them in terms of the result.
  std::string apply(std::string_view text, size_t offset, std::span<const TextSpan> literal,
                    std::vector<TextSpan>& spans) const;

 private:
  enum class Kind : uint8_t { kNfc, kNfd, kNfkc, kNfkd, kReplace, kPrepend };
  struct Step {
    Kind kind;
    std::unique_ptr<Regex> pattern;  // kReplace by Regex
    std::string from;                // kReplace by String
    std::string to;                  // kReplace, kPrepend
  };
  void parse_step(const nlohmann::json& json, const std::string& path, int depth);
  static std::string run(const Step& step, const std::string& text, bool first);
  std::string apply_run(std::string_view text, bool first) const;

  std::vector<Step> steps_;
};

}  // namespace duet
