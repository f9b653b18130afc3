#include "text/normalizer.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "text/json_read.h"
#include "text/utf8.h"

namespace duet {

namespace {

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

std::string unicode_form(const std::string& text, int options) {
  if (is_ascii(text)) return text;  // is in every form already
  utf8proc_uint8_t* out = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &out, static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(out, &std::free);
  if (size < 0) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("a text of {} bytes cannot be normalised: {}",
                                                         text.size(), utf8proc_errmsg(size)));
  }
  return std::string(reinterpret_cast<const char*>(out), static_cast<size_t>(size));
}

std::string replace_literal(const std::string& text, const std::string& from, const std::string& to) {
  std::string out;
  size_t done = 0;
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, done)) {
    out.append(text, done, at - done).append(to);
    done = at + from.size();
  }
  return out.append(text, done);
}

std::string replace_pattern(const std::string& text, const Regex& pattern, const std::string& to) {
  std::string out;
  RegexScratch scratch;
  size_t done = 0, start = 0, begin = 0, end = 0;
  while (start <= text.size() && pattern.find(text, start, scratch, begin, end)) {
    out.append(text, done, begin - done).append(to);
    done = end;
    start = end;
    if (begin == end) start = end < text.size() ? end + static_cast<size_t>(utf8_length(text[end])) : end + 1;
  }
  return out.append(text, done);
}

}  // namespace

Normalizer Normalizer::parse(const nlohmann::json& json) {
  Normalizer result;
  if (!json.is_null()) result.parse_step(json, "normalizer", 0);
  return result;
}

void Normalizer::parse_step(const nlohmann::json& json, const std::string& path, int depth) {
  check_nesting(depth, path);
  const std::string type = read_string(json, "type", path);
  if (type == "Sequence") {
    const nlohmann::json& list = read_array(json, "normalizers", path);
    for (size_t i = 0; i < list.size(); ++i)
      parse_step(list[i], fmt::format("{}.normalizers[{}]", path, i), depth + 1);
    return;
  }
  Step step{Kind::kNfc, nullptr, {}, {}};
  if (type == "NFC") {
    step.kind = Kind::kNfc;
  } else if (type == "NFD") {
    step.kind = Kind::kNfd;
  } else if (type == "NFKC") {
    step.kind = Kind::kNfkc;
  } else if (type == "NFKD") {
    step.kind = Kind::kNfkd;
  } else if (type == "Prepend") {
    step.kind = Kind::kPrepend;
    step.to = read_string(json, "prepend", path);
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    step.to = read_string(json, "content", path);
    const nlohmann::json& pattern = read_object(json, "pattern", path);
    if (pattern.contains("String")) {
      step.from = read_string(pattern, "String", path + ".pattern");
      if (step.from.empty())
        throw Error(ErrorKind::kCorrupt, fmt::format("tokenizer.json: {}.pattern.String is empty", path));
    } else {
      step.pattern = std::make_unique<Regex>(read_string(pattern, "Regex", path + ".pattern"),
                                             "tokenizer.json: " + path + ".pattern");
    }
  } else {
    throw Error(ErrorKind::kUnsupported,
                fmt::format("tokenizer.json: {}.type \"{}\" is not supported (NFC, NFD, NFKC, NFKD, Replace, "
                            "Prepend and Sequence are)",
                            path, type));
  }
  steps_.push_back(std::move(step));
}

std::string Normalizer::run(const Step& step, const std::string& text, bool first) {
  switch (step.kind) {
    case Kind::kNfc: return unicode_form(text, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    case Kind::kNfd: return unicode_form(text, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
    case Kind::kNfkc: return unicode_form(text, UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT);
    case Kind::kNfkd: return unicode_form(text, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
    case Kind::kPrepend: return text.empty() || !first ? text : step.to + text;
    case Kind::kReplace:
      return step.pattern ? replace_pattern(text, *step.pattern, step.to)
                          : replace_literal(text, step.from, step.to);
  }
  return text;
}

std::string Normalizer::apply_run(std::string_view text, bool first) const {
  std::string now(text);
  for (const Step& step : steps_) now = run(step, now, first);
  return now;
}

std::string Normalizer::apply(std::string_view text) const {
  return apply_run(text, true);
}

std::string Normalizer::apply(std::string_view text, size_t offset, std::span<const TextSpan> literal,
                              std::vector<TextSpan>& spans) const {
  spans.clear();
  if (literal.empty()) return apply(text);
  std::string out;
  size_t done = 0;
  const auto add = [&](size_t end, bool is_literal) {
    if (end <= done) return;
    const size_t begin = out.size();
    out += apply_run(text.substr(done, end - done), done == 0);
    if (is_literal) spans.push_back({begin, out.size()});
    done = end;
  };
  for (const TextSpan& span : literal) {
    const size_t begin = std::clamp(span.begin, offset, offset + text.size()) - offset;
    const size_t end = std::clamp(span.end, offset, offset + text.size()) - offset;
    if (begin == end) continue;
    add(begin, false);
    add(end, true);
  }
  add(text.size(), false);
  return out;
}

}  // namespace duet
