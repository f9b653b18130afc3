// Cuts text into the words that BPE merges within: the `pre_tokenizer` of tokenizer.json.
// Split (Regex or String, every behaviour, invert), Digits, Punctuation, ByteLevel, and Sequence of
// them; anything else is refused by name and JSON path. Immutable after parsing.
#pragma once

#include <deque>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "text/regex.h"

namespace duet {

enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

class PreTokenizer {
 public:
  struct Scratch {
    RegexScratch regex;
    std::vector<std::string_view> words;  // the result; views into the text or into `owned`
    std::vector<std::string_view> next;
    std::deque<std::string> owned;  // words that add_prefix_space had to copy
  };

  /// `json` is the pre_tokenizer object. Throws Error(kUnsupported) or Error(kCorrupt).
  static PreTokenizer parse(const nlohmann::json& json);

  /// Fills scratch.words with the non-empty words of valid UTF-8 text, in order.
  void split(std::string_view text, Scratch& scratch) const;

 private:
  struct Step {
    std::unique_ptr<Regex> pattern;  // null: no cutting (ByteLevel without regex)
    SplitBehavior behavior = SplitBehavior::kIsolated;
    bool invert = false;
    bool add_prefix_space = false;
  };
  void parse_step(const nlohmann::json& json, const std::string& path, int depth);
  static void cut(const Step& step, std::string_view word, Scratch& scratch);

  std::vector<Step> steps_;
  bool byte_level_ = false;
};

}  // namespace duet
