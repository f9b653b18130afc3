#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"

#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>

#include "base/error.h"

namespace duet {

namespace {

// The JIT keeps backtracking points of groups on this stack; 32 KiB serve every published pattern,
// the maximum only bounds what a strange one may take before the interpreter takes over.
constexpr size_t kJitStackStart = 32 << 10;
constexpr size_t kJitStackMax = 8 << 20;
// Published patterns are under 1 kB; PCRE2 can spend long on compiling megabytes.
constexpr size_t kMaxPattern = 64 << 10;
// Backtracking steps of one match: linear patterns need a few per byte of the subject.
constexpr uint64_t kMatchSteps = 1'000'000;
constexpr uint64_t kMatchStepsPerByte = 32;

/// Writes \s and \S out as Unicode White_Space.
std::string translate(const std::string& pattern) {
  static constexpr std::string_view kSpace = "\\t-\\r\\x{85}\\p{Z}";
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char next = pattern[++i];
      if (next == 's') {
        out += in_class ? std::string(kSpace) : fmt::format("[{}]", kSpace);
      } else if (next == 'S' && !in_class) {
        out += fmt::format("[^{}]", kSpace);
      } else {
        out += c;
        out += next;
      }
      continue;
    }
    if (!in_class && c == '[') {
      in_class = true;
      out += c;
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') out += pattern[++i];
      continue;
    }
    if (in_class && c == '[' && i + 1 < pattern.size() && pattern[i + 1] == ':') {  // [:alpha:]
      const size_t close = pattern.find(":]", i + 2);
      if (close != std::string::npos) {
        out.append(pattern, i, close + 2 - i);
        i = close + 1;
        continue;
      }
    }
    if (in_class && c == ']') in_class = false;
    out += c;
  }
  return out;
}

std::string message_of(int code) {
  PCRE2_UCHAR buffer[256] = {};
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

struct RegexScratch::State {
  pcre2_match_data* data = pcre2_match_data_create(64, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(kJitStackStart, kJitStackMax, nullptr);
  State() {
    if (stack != nullptr) pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~State() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    if (stack != nullptr) pcre2_jit_stack_free(stack);
  }
};

RegexScratch::RegexScratch() : state_(std::make_unique<State>()) {
  if (state_->data == nullptr || state_->context == nullptr) {
    throw Error(ErrorKind::kResourceExhausted, "no memory for the pre-tokenizer's match buffers");
  }
}
RegexScratch::~RegexScratch() = default;

struct Regex::State {
  pcre2_code* code = nullptr;
  bool jit = false;
  std::string where;
  ~State() { pcre2_code_free(code); }
};

Regex::Regex(const std::string& pattern, const std::string& where) : state_(std::make_unique<State>()) {
  state_->where = where;
  if (pattern.size() > kMaxPattern) {
    throw Error(ErrorKind::kUnsupported, fmt::format("{}: a pattern of {} bytes, at most {} are supported",
                                                     where, pattern.size(), kMaxPattern));
  }
  if (pattern.find("(*") != std::string::npos || pattern.find("\\C") != std::string::npos) {
    // PCRE2's own verbs and single-byte matching mean nothing to Oniguruma and could leave UTF-8.
    throw Error(ErrorKind::kUnsupported, where + ": the pattern contains (*VERB) or \\C");
  }
  const std::string translated = translate(pattern);
  int error = 0;
  size_t offset = 0;
  state_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                               PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (state_->code == nullptr) {
    throw Error(ErrorKind::kUnsupported, fmt::format("{}: the pattern does not compile: {} at byte {}", where,
                                                     message_of(error), offset));
  }
  state_->jit = pcre2_jit_compile(state_->code, PCRE2_JIT_COMPLETE) == 0;
}
Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

bool Regex::find(std::string_view subject, size_t start, RegexScratch& scratch, size_t& begin,
                 size_t& end) const {
  RegexScratch::State& s = *scratch.state_;
  const auto* text = reinterpret_cast<PCRE2_SPTR>(subject.data() == nullptr ? "" : subject.data());
  const uint64_t steps = kMatchSteps + kMatchStepsPerByte * subject.size();
  pcre2_set_match_limit(s.context, static_cast<uint32_t>(std::min<uint64_t>(steps, UINT32_MAX)));
  int rc = PCRE2_ERROR_JIT_STACKLIMIT;
  if (state_->jit) {
    rc = pcre2_jit_match(state_->code, text, subject.size(), start, 0, s.data, s.context);
  }
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {  // the interpreter keeps its points on the heap
    rc = pcre2_match(state_->code, text, subject.size(), start, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, s.data,
                     s.context);
  }
  if (rc == PCRE2_ERROR_NOMATCH) return false;
  if (rc < 0) {
    throw Error(ErrorKind::kResourceExhausted,
                fmt::format("{}: matching the pattern failed at byte {} of {}: {}", state_->where, start,
                            subject.size(), message_of(rc)));
  }
  const size_t* pair = pcre2_get_ovector_pointer(s.data);
  begin = pair[0];
  end = std::max(pair[0], pair[1]);  // \K in a lookahead can put the start behind the end
  return true;
}

}  // namespace duet
