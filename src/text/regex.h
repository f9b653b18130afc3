// A pre-tokenizer's regular expression: PCRE2 with Unicode properties, compiled once per tokenizer
// and matched through the JIT where the machine has one. Written for Oniguruma (Hugging Face's
// engine); `\s` on U+180E is translated at compile time. Unicode tables are PCRE2's (14 in Debian 12):
// characters that later versions added count as unassigned, where Hugging Face's may know them.
// Immutable after compile; concurrent matches each bring their own RegexScratch.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace duet {

/// Match buffers and JIT stack of one thread of matching.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;

 private:
  friend class Regex;
  struct State;
  std::unique_ptr<State> state_;
};

class Regex {
 public:
  /// Throws Error(kUnsupported) with PCRE2's message and `where` (a JSON path) when it does not compile.
  Regex(const std::string& pattern, const std::string& where);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  /// First match at or after `start` of a valid UTF-8 subject; false when there is none. A pattern
  /// that backtracks without bound is an Error(kResourceExhausted), never a hang.
  bool find(std::string_view subject, size_t start, RegexScratch& scratch, size_t& begin, size_t& end) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace duet
