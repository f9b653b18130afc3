#include "text/jinja/lexer.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "text/utf8.h"

namespace duet::jinja {

namespace {

bool is_blank(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_name_start(char c) {
  return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_newlines(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) text();
    tokens_.push_back({TokenType::kEnd, "", line_});
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(const std::string& text) const {
    throw Error(ErrorKind::kCorrupt, fmt::format("chat template, line {}: {}", line_, text));
  }

  void move_to(size_t to) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(at_),
                                         source_.begin() + static_cast<ptrdiff_t>(to), '\n'));
    at_ = to;
  }
  bool looking_at(std::string_view what) const { return source_.compare(at_, what.size(), what) == 0; }
  void skip_blank() {
    size_t to = at_;
    while (to < source_.size() && is_blank(source_[to])) ++to;
    move_to(to);
  }

  /// Text up to the next tag, stripped on its right as the tag's sign or lstrip_blocks asks.
  void text() {
    size_t tag = at_;
    while (true) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos || tag + 1 >= source_.size()) {
        tag = source_.size();
        break;
      }
      const char next = source_[tag + 1];
      if (next == '{' || next == '%' || next == '#') break;
      ++tag;
    }
    std::string_view content = std::string_view(source_).substr(at_, tag - at_);
    const char kind = tag < source_.size() ? source_[tag + 1] : ' ';
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
    if (kind != ' ' && sign == '-') {
      while (!content.empty() && is_blank(content.back())) content.remove_suffix(1);
    } else if ((kind == '%' || kind == '#') && sign != '+') {
      const size_t newline = content.rfind('\n');
      const size_t start = newline == std::string_view::npos ? 0 : newline + 1;
      const bool line_begins = newline != std::string_view::npos || at_ == 0 || source_[at_ - 1] == '\n';
      if (line_begins &&
          std::all_of(content.begin() + static_cast<ptrdiff_t>(start), content.end(), is_blank)) {
        content = content.substr(0, start);
      }
    }
    if (!content.empty()) tokens_.push_back({TokenType::kText, std::string(content), line_});
    move_to(tag);
    if (kind == ' ') return;
    move_to(at_ + 2);
    const bool signed_tag = at_ < source_.size() && (source_[at_] == '-' || source_[at_] == '+');
    if (kind == '#') return comment();
    if (signed_tag) ++at_;
    if (kind == '%' && raw()) return;
    tokens_.push_back({kind == '{' ? TokenType::kVariableBegin : TokenType::kBlockBegin, "", line_});
    expression(kind == '{');
  }

  /// Behind "%}" or "#}": trim_blocks takes one newline, '-' all white space, '+' nothing.
  void after_block(char sign) {
    if (sign == '-') {
      skip_blank();
    } else if (sign != '+' && at_ < source_.size() && source_[at_] == '\n') {
      move_to(at_ + 1);
    }
  }

  void comment() {
    const size_t close = source_.find("#}", at_);
    if (close == std::string::npos) fail("a comment {# is not closed");
    const char sign = close > at_ ? source_[close - 1] : ' ';
    move_to(close + 2);
    after_block(sign);
  }

  /// {% raw %} … {% endraw %}; false when the tag is another.
  bool raw() {
    const size_t saved = at_;
    const int line = line_;
    skip_blank();
    if (looking_at("raw")) {
      move_to(at_ + 3);
      skip_blank();
      const bool minus = looking_at("-%}");
      if (minus || looking_at("%}")) {
        move_to(at_ + (minus ? 3 : 2));
        if (minus) skip_blank();
        end_raw();
        return true;
      }
    }
    at_ = saved;
    line_ = line;
    return false;
  }

  void end_raw() {
    const size_t begin = at_;
    for (size_t tag = source_.find("{%", begin); tag != std::string::npos;
         tag = source_.find("{%", tag + 2)) {
      size_t at = tag + 2;
      const char sign = at < source_.size() ? source_[at] : ' ';
      if (sign == '-' || sign == '+') ++at;
      while (at < source_.size() && is_blank(source_[at])) ++at;
      if (source_.compare(at, 6, "endraw") != 0) continue;
      at += 6;
      while (at < source_.size() && is_blank(source_[at])) ++at;
      const char end_sign = at < source_.size() ? source_[at] : ' ';
      if (end_sign == '-' || end_sign == '+') ++at;
      if (source_.compare(at, 2, "%}") != 0) continue;
      std::string content = source_.substr(begin, tag - begin);
      if (sign == '-') {
        while (!content.empty() && is_blank(content.back())) content.pop_back();
      } else if (sign != '+') {
        const size_t newline = content.rfind('\n');
        const size_t start = newline == std::string::npos ? 0 : newline + 1;
        if (newline != std::string::npos &&
            std::all_of(content.begin() + static_cast<ptrdiff_t>(start), content.end(), is_blank)) {
          content.resize(start);
        }
      }
      if (!content.empty()) tokens_.push_back({TokenType::kText, content, line_});
      move_to(at + 2);
      after_block(end_sign);
      return;
    }
    fail("{% raw %} is not closed");
  }

  void expression(bool variable) {
    int brackets = 0;  // inside them "}}" closes two dicts, not the tag
    while (true) {
      skip_blank();
      if (at_ >= source_.size()) fail(variable ? "{{ is not closed" : "{% is not closed");
      if (brackets == 0 && close_tag(variable)) return;
      const char c = source_[at_];
      if (c == '"' || c == '\'') {
        string(c);
      } else if (is_digit(c)) {
        number();
      } else if (is_name_start(c)) {
        size_t end = at_;
        while (end < source_.size() && (is_name_start(source_[end]) || is_digit(source_[end]))) ++end;
        tokens_.push_back({TokenType::kName, source_.substr(at_, end - at_), line_});
        at_ = end;
      } else {
        operation(c, brackets);
      }
    }
  }

  bool close_tag(bool variable) {
    const std::string_view mark = variable ? "}}" : "%}";
    const char sign = source_[at_];
    const size_t skip = sign == '-' || (sign == '+' && !variable) ? 1 : 0;
    if (source_.compare(at_ + skip, 2, mark) != 0) return false;
    tokens_.push_back({variable ? TokenType::kVariableEnd : TokenType::kBlockEnd, "", line_});
    move_to(at_ + skip + 2);
    if (!variable) {
      after_block(skip == 1 ? sign : ' ');
    } else if (skip == 1) {
      skip_blank();
    }
    return true;
  }

  void operation(char c, int& brackets) {
    static constexpr std::string_view kDouble[] = {"==", "!=", "<=", ">=", "//", "**"};
    for (std::string_view two : kDouble) {
      if (looking_at(two)) {
        tokens_.push_back({TokenType::kOperator, std::string(two), line_});
        at_ += 2;
        return;
      }
    }
    if (std::string_view("+-*/%~<>=|.,:()[]{}").find(c) == std::string_view::npos) {
      fail(fmt::format("unexpected character '{}'", source_.substr(at_, utf8_length(c))));
    }
    if (c == '(' || c == '[' || c == '{') ++brackets;
    if (c == ')' || c == ']' || c == '}') {
      if (--brackets < 0) fail(fmt::format("unexpected '{}'", c));
    }
    tokens_.push_back({TokenType::kOperator, std::string(1, c), line_});
    ++at_;
  }

  void number() {
    size_t end = at_;
    if (source_[at_] == '0' && at_ + 1 < source_.size() &&
        std::string_view("xXoObB").find(source_[at_ + 1]) != std::string_view::npos) {
      fail("a number that is not decimal");
    }
    const auto digits = [&] {
      while (end < source_.size() &&
             (is_digit(source_[end]) ||
              (source_[end] == '_' && end + 1 < source_.size() && is_digit(source_[end + 1]))))
        ++end;
    };
    digits();
    bool real = false;
    if (end + 1 < source_.size() && source_[end] == '.' && is_digit(source_[end + 1])) {
      real = true;
      ++end;
      digits();
    }
    if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      const size_t sign =
          end + 1 < source_.size() && (source_[end + 1] == '+' || source_[end + 1] == '-') ? 1 : 0;
      if (end + 1 + sign < source_.size() && is_digit(source_[end + 1 + sign])) {
        real = true;
        end += 1 + sign;
        digits();
      }
    }
    std::string text = source_.substr(at_, end - at_);
    text.erase(std::remove(text.begin(), text.end(), '_'), text.end());
    tokens_.push_back({real ? TokenType::kFloat : TokenType::kInteger, text, line_});
    at_ = end;
  }

  void string(char quote) {
    std::string value;
    size_t i = at_ + 1;
    for (;; ++i) {
      if (i >= source_.size()) fail("a string is not closed");
      if (source_[i] == quote) break;
      if (source_[i] != '\\') {
        value += source_[i];
        continue;
      }
      if (++i >= source_.size()) fail("a string is not closed");
      escape(i, value);
    }
    tokens_.push_back({TokenType::kString, value, line_});
    move_to(i + 1);
  }

  /// Python's escapes; `i` is at the character behind the backslash and ends at the last one used.
  void escape(size_t& i, std::string& value) {
    static constexpr std::string_view kNames = "nrtabfv\\'\"", kValues = "\n\r\t\a\b\f\v\\'\"";
    const char c = source_[i];
    const size_t simple = kNames.find(c);
    if (simple != std::string_view::npos) {
      value += kValues[simple];
      return;
    }
    if (c == '\n') return;  // a line continued
    const int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    uint32_t code = 0;
    if (digits > 0) {
      for (int d = 0; d < digits; ++d) {
        const char h = ++i < source_.size() ? source_[i] : ' ';
        const int v = is_digit(h) ? h - '0' : (h | 32) >= 'a' && (h | 32) <= 'f' ? (h | 32) - 'a' + 10 : -1;
        if (v < 0) fail(fmt::format("a broken \\{} escape", c));
        code = code << 4 | static_cast<uint32_t>(v);
      }
    } else if (c >= '0' && c <= '7') {
      code = static_cast<uint32_t>(c - '0');
      for (int d = 0; d < 2 && i + 1 < source_.size() && source_[i + 1] >= '0' && source_[i + 1] <= '7';
           ++d) {
        code = code << 3 | static_cast<uint32_t>(source_[++i] - '0');
      }
    } else if (c == 'N') {
      fail("a \\N{…} escape is not supported");
    } else {
      value += '\\';
      value += c;
      return;
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) fail("an escape beyond Unicode");
    append_utf8(value, code);
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  return Lexer(source).run();
}

}  // namespace duet::jinja
