// Cuts text into the words that BPE merges within: the `pre_tokenizer` of tokenizer.json.
// Split (Regex or String, every behaviour, invert), Digits, Punctuation, ByteLevel, Metaspace, and Sequence
// of them; anything else is refused by name and JSON path. None at all leaves the text whole, as
// SentencePiece- like files do. Immutable after parsing.
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
    std::deque<std::string> owned;  // words that had to be copied
  };

  /// `json` is the pre_tokenizer object. Throws Error(kUnsupported) or Error(kCorrupt).
  static PreTokenizer parse(const nlohmann::json& json);

  /// Fills scratch.words with the non-empty words of valid UTF-8 text, in order. `at_start`: nothing, not
  /// even an added token, lies before the text.
  void split(std::string_view text, bool at_start, Scratch& scratch) const;
  /// Words are to be read as bytes, else as characters.
  bool byte_level() const { return byte_level_; }

 private:
  struct Step {
    std::unique_ptr<Regex> pattern;  // null: no cutting (ByteLevel without regex)
    SplitBehavior behavior = SplitBehavior::kIsolated;
    bool invert = false;
    bool add_prefix_space = false;
    // Metaspace: every space becomes `metaspace`, which also goes before the first word, or before all.
    std::string metaspace;
    bool prepend_first = false, prepend_all = false;
  };
  void parse_metaspace(const nlohmann::json& json, const std::string& path, Step& step);
  static std::string_view with_metaspaces(const Step& step, std::string_view word, bool first,
                                          Scratch& scratch);
  void parse_step(const nlohmann::json& json, const std::string& path, int depth);
  static void cut(const Step& step, std::string_view word, Scratch& scratch);

  std::vector<Step> steps_;
  bool byte_level_ = false;
};

}  // namespace duet
