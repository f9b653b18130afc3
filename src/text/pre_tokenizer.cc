#include "text/pre_tokenizer.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "text/json_read.h"
#include "text/utf8.h"

namespace duet {

namespace {

// The pattern of GPT-2, which ByteLevel applies itself when use_regex is true.
constexpr const char* kByteLevelPattern =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

SplitBehavior parse_behavior(const std::string& name, const std::string& path) {
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  throw Error(ErrorKind::kUnsupported,
              fmt::format("tokenizer.json: {}.behavior \"{}\" is not supported", path, name));
}

std::string escape_regex(const std::string& literal) {
  std::string out;
  for (char c : literal) {
    if (std::string_view("\\^$.|?*+()[]{}-#").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

}  // namespace

PreTokenizer PreTokenizer::parse(const nlohmann::json& json) {
  PreTokenizer result;
  if (!json.is_null()) result.parse_step(json, "pre_tokenizer", 0);
  return result;
}

void PreTokenizer::parse_metaspace(const nlohmann::json& json, const std::string& path, Step& step) {
  step.metaspace = read_string(json, "replacement", path);
  if (step.metaspace.empty())
    throw Error(ErrorKind::kCorrupt, fmt::format("tokenizer.json: {}.replacement is empty", path));
  // Files of before 2023 have add_prefix_space alone.
  std::string scheme = read_bool(json, "add_prefix_space", path, true) ? "always" : "never";
  if (json.contains("prepend_scheme")) scheme = read_string(json, "prepend_scheme", path);
  if (scheme != "always" && scheme != "first" && scheme != "never") {
    throw Error(ErrorKind::kUnsupported,
                fmt::format("tokenizer.json: {}.prepend_scheme \"{}\" is not supported", path, scheme));
  }
  step.prepend_all = scheme == "always";
  step.prepend_first = scheme == "first";
  if (!read_bool(json, "split", path, true)) return;
  step.pattern = std::make_unique<Regex>(escape_regex(step.metaspace), "tokenizer.json: " + path);
  step.behavior = SplitBehavior::kMergedWithNext;
}

void PreTokenizer::parse_step(const nlohmann::json& json, const std::string& path, int depth) {
  check_nesting(depth, path);
  const std::string type = read_string(json, "type", path);
  if (type == "Sequence") {
    const nlohmann::json& list = read_array(json, "pretokenizers", path);
    for (size_t i = 0; i < list.size(); ++i) {
      parse_step(list[i], fmt::format("{}.pretokenizers[{}]", path, i), depth + 1);
    }
    return;
  }
  if (byte_level_) {  // what follows ByteLevel would see its alphabet, not the text
    throw Error(ErrorKind::kUnsupported,
                fmt::format("tokenizer.json: {} ({}) after a ByteLevel is not supported", path, type));
  }
  Step step;
  if (type == "Split") {
    const nlohmann::json& pattern = read_object(json, "pattern", path);
    const std::string regex = pattern.contains("String")
                                  ? escape_regex(read_string(pattern, "String", path + ".pattern"))
                                  : read_string(pattern, "Regex", path + ".pattern");
    step.pattern = std::make_unique<Regex>(regex, "tokenizer.json: " + path + ".pattern");
    step.behavior = parse_behavior(read_string(json, "behavior", path), path);
    step.invert = read_bool(json, "invert", path, false);
  } else if (type == "Digits") {
    step.pattern = std::make_unique<Regex>("\\p{N}", "tokenizer.json: " + path);
    step.behavior = read_bool(json, "individual_digits", path, false) ? SplitBehavior::kIsolated
                                                                      : SplitBehavior::kContiguous;
  } else if (type == "Punctuation") {
    step.pattern = std::make_unique<Regex>("[!-/:-@\\[-`{-~\\p{P}]", "tokenizer.json: " + path);
    step.behavior = json.contains("behavior") ? parse_behavior(read_string(json, "behavior", path), path)
                                              : SplitBehavior::kIsolated;
  } else if (type == "ByteLevel") {
    step.add_prefix_space = read_bool(json, "add_prefix_space", path, true);
    if (read_bool(json, "use_regex", path, true)) {
      step.pattern = std::make_unique<Regex>(kByteLevelPattern, "tokenizer.json: " + path);
    }
    byte_level_ = true;
    if (!step.pattern && !step.add_prefix_space) return;
  } else if (type == "Metaspace") {
    parse_metaspace(json, path, step);
  } else {
    throw Error(ErrorKind::kUnsupported,
                fmt::format("tokenizer.json: {}.type \"{}\" is not supported (Split, Digits, Punctuation, "
                            "ByteLevel, Metaspace and Sequence are)",
                            path, type));
  }
  steps_.push_back(std::move(step));
}

std::string_view PreTokenizer::with_metaspaces(const Step& step, std::string_view word, bool first,
                                               Scratch& scratch) {
  std::string out;
  for (const char c : word) {
    if (c == ' ') {
      out += step.metaspace;
    } else {
      out += c;
    }
  }
  const bool prepend = step.prepend_all || (step.prepend_first && first);
  if (prepend && !out.starts_with(step.metaspace)) out.insert(0, step.metaspace);
  scratch.owned.push_back(std::move(out));
  return scratch.owned.back();
}

void PreTokenizer::split(std::string_view text, bool at_start, Scratch& scratch) const {
  scratch.words.clear();
  scratch.owned.clear();
  if (!text.empty()) scratch.words.push_back(text);
  for (const Step& step : steps_) {
    scratch.next.clear();
    for (std::string_view word : scratch.words) {
      const bool first = at_start && scratch.next.empty();
      if (!step.metaspace.empty()) word = with_metaspaces(step, word, first, scratch);
      if (step.add_prefix_space && word.front() != ' ') {
        scratch.owned.push_back(" " + std::string(word));
        word = scratch.owned.back();
      }
      if (step.pattern) {
        cut(step, word, scratch);
      } else {
        scratch.next.push_back(word);
      }
    }
    std::swap(scratch.words, scratch.next);
  }
}

void PreTokenizer::cut(const Step& step, std::string_view word, Scratch& scratch) {
  std::vector<std::string_view>& out = scratch.next;
  const size_t first = out.size();
  bool previous_match = false;
  std::string_view carried;  // MergedWithNext: a match waiting for what follows it
  const auto emit = [&](size_t begin, size_t end, bool match) {
    if (begin == end) return;
    std::string_view piece = word.substr(begin, end - begin);
    if (step.invert) match = !match;
    switch (step.behavior) {
      case SplitBehavior::kIsolated: out.push_back(piece); break;
      case SplitBehavior::kRemoved:
        if (!match) out.push_back(piece);
        break;
      case SplitBehavior::kContiguous:
      case SplitBehavior::kMergedWithPrevious: {
        const bool joins =
            step.behavior == SplitBehavior::kContiguous ? match == previous_match : match && !previous_match;
        if (joins && out.size() > first) {
          out.back() = std::string_view(out.back().data(), out.back().size() + piece.size());
        } else {
          out.push_back(piece);
        }
        break;
      }
      case SplitBehavior::kMergedWithNext:
        if (!carried.empty()) {
          if (match) {
            out.push_back(carried);
          } else {
            piece = std::string_view(carried.data(), carried.size() + piece.size());
          }
          carried = {};
        }
        if (match) {
          carried = piece;
        } else {
          out.push_back(piece);
        }
        break;
    }
    previous_match = match;
  };
  size_t done = 0;   // everything before is emitted
  size_t start = 0;  // where to look next
  size_t begin = 0, end = 0;
  while (start <= word.size() && step.pattern->find(word, start, scratch.regex, begin, end)) {
    emit(done, begin, false);
    emit(begin, end, true);
    done = end;
    start = end;
    if (begin == end) {  // an empty match cuts, and the search goes on behind the next code point
      start = end < word.size() ? end + utf8_length(word[end]) : end + 1;
    }
  }
  emit(done, word.size(), false);
  if (!carried.empty()) out.push_back(carried);
}

}  // namespace duet
