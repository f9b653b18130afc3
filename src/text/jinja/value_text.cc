// Values as text: str(), repr() and JSON, both ways.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "text/jinja/value.h"
#include "text/utf8.h"

namespace duet::jinja {

namespace {

std::string float_text(double value, bool json) {
  if (std::isnan(value)) return json ? "NaN" : "nan";
  if (std::isinf(value)) return std::string(value < 0 ? "-" : "") + (json ? "Infinity" : "inf");
  std::string text = fmt::format("{}", value);  // shortest that reads back, as Python's repr
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

/// Writes containers out; `marked` tells whether any literal text went in. One mark covers the
/// whole result then: nothing inside a dump is a template's own control token.
class Writer {
 public:
  explicit Writer(Runtime& rt) : rt_(rt) {}

  void repr(const Value& value) {
    rt_.step();
    if (const Str* text = as_str(value)) return repr_string(*text);
    if (const List* list = as_list(value)) {
      out_ += list->tuple ? '(' : '[';
      for (size_t i = 0; i < list->items.size(); ++i) {
        if (i > 0) out_ += ", ";
        repr(list->items[i]);
      }
      if (list->tuple && list->items.size() == 1) out_ += ',';
      out_ += list->tuple ? ')' : ']';
    } else if (const Dict* dict = as_dict(value)) {
      out_ += '{';
      for (size_t i = 0; i < dict->items.size(); ++i) {
        if (i > 0) out_ += ", ";
        repr_string(*dict->items[i].first);
        out_ += ": ";
        repr(dict->items[i].second);
      }
      out_ += '}';
    } else if (is<Undefined>(value)) {
      out_ += "Undefined";
    } else {
      scalar(value, false);
    }
    check();
  }

  void json(const Value& value, const JsonStyle& style, int level) {
    rt_.step();
    if (const Str* text = as_str(value)) {
      json_string(*text, style.ensure_ascii);
    } else if (const List* list = as_list(value)) {
      out_ += '[';
      for (size_t i = 0; i < list->items.size(); ++i) {
        separate(i, style, level + 1);
        json(list->items[i], style, level + 1);
      }
      if (!list->items.empty()) new_line(style, level);
      out_ += ']';
    } else if (const Dict* dict = as_dict(value)) {
      json_dict(*dict, style, level);
    } else if (is<None>(value)) {
      out_ += "null";
    } else if (const auto* flag = std::get_if<bool>(&value)) {
      out_ += *flag ? "true" : "false";
    } else {
      scalar(value, true);
    }
    check();
  }

  Str take() {
    Str result{std::move(out_), {}};
    if (marked_) result.mark_all();
    return result;
  }

 private:
  void check() {  // charge what was written since the last look
    rt_.use_bytes(out_.size() - charged_);
    charged_ = out_.size();
  }

  void scalar(const Value& value, bool json) {
    if (const auto* integer = std::get_if<int64_t>(&value)) {
      out_ += std::to_string(*integer);
    } else if (const auto* real = std::get_if<double>(&value)) {
      out_ += float_text(*real, json);
    } else if (!json && is<None>(value)) {
      out_ += "None";
    } else if (!json && is<bool>(value)) {
      out_ += std::get<bool>(value) ? "True" : "False";
    } else if (json) {
      rt_.fail(fmt::format("{} is not JSON serializable", type_name(value)));
    } else {
      rt_.unsupported(fmt::format("printing a {}", type_name(value)));
    }
  }

  void repr_string(const Str& text) {
    marked_ = marked_ || !text.literal.empty();
    const bool has_single = text.text.find('\'') != std::string::npos;
    const char quote = has_single && text.text.find('"') == std::string::npos ? '"' : '\'';
    out_ += quote;
    for (char c : text.text) {
      if (c == quote || c == '\\') {
        out_ += '\\';
        out_ += c;
      } else if (c == '\n') {
        out_ += "\\n";
      } else if (c == '\r') {
        out_ += "\\r";
      } else if (c == '\t') {
        out_ += "\\t";
      } else if (static_cast<uint8_t>(c) < 0x20 || c == 0x7F) {
        out_ += fmt::format("\\x{:02x}", static_cast<int>(c));
      } else {
        out_ += c;
      }
    }
    out_ += quote;
    check();
  }

  void json_string(const Str& text, bool ensure_ascii) {
    marked_ = marked_ || !text.literal.empty();
    out_ += '"';
    for (size_t at = 0; at < text.text.size();) {
      const char c = text.text[at];
      static constexpr std::string_view kPlain = "\"\\\n\r\t\b\f", kEscaped = "\"\\nrtbf";
      const size_t escape = kPlain.find(c);
      if (escape != std::string_view::npos) {
        out_ += '\\';
        out_ += kEscaped[escape];
        ++at;
      } else if (static_cast<uint8_t>(c) < 0x20) {
        out_ += fmt::format("\\u{:04x}", static_cast<int>(c));
        ++at;
      } else if (static_cast<uint8_t>(c) < 0x80 || !ensure_ascii) {
        out_ += c;
        ++at;
      } else {
        const auto code = static_cast<uint32_t>(next_code_point(text.text, at));
        if (code < 0x10000) {
          out_ += fmt::format("\\u{:04x}", code);
        } else {
          out_ += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + ((code - 0x10000) >> 10),
                              0xDC00 + ((code - 0x10000) & 0x3FF));
        }
      }
    }
    out_ += '"';
  }

  void json_dict(const Dict& dict, const JsonStyle& style, int level) {
    std::vector<size_t> order(dict.items.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    if (style.sort_keys) {
      std::sort(order.begin(), order.end(),
                [&](size_t a, size_t b) { return dict.items[a].first->text < dict.items[b].first->text; });
    }
    out_ += '{';
    for (size_t i = 0; i < order.size(); ++i) {
      separate(i, style, level + 1);
      json_string(*dict.items[order[i]].first, style.ensure_ascii);
      out_ += style.key_separator;
      json(dict.items[order[i]].second, style, level + 1);
    }
    if (!order.empty()) new_line(style, level);
    out_ += '}';
  }

  void separate(size_t i, const JsonStyle& style, int level) {
    if (i > 0) out_ += style.item_separator;
    new_line(style, level);
  }
  void new_line(const JsonStyle& style, int level) {
    if (style.indent < 0) return;
    out_ += '\n';
    out_.append(static_cast<size_t>(style.indent) * level, ' ');
  }

  Runtime& rt_;
  std::string out_;
  size_t charged_ = 0;
  bool marked_ = false;
};

/// Builds Values while nlohmann's parser reads: keeps the order of keys, bounds the depth.
class Reader : public nlohmann::json_sax<nlohmann::json> {
 public:
  Reader(Runtime& rt, bool mark, const std::string& what) : rt_(rt), mark_(mark), what_(what) {}

  bool null() override { return add(None{}); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(static_cast<int64_t>(value)); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<uint64_t>(INT64_MAX)) bad("an integer beyond 64 bits");
    return add(static_cast<int64_t>(value));
  }
  bool number_float(number_float_t value, const string_t& text) override {
    if (text.find_first_of(".eE") == std::string::npos) bad("an integer beyond 64 bits");
    return add(static_cast<double>(value));
  }
  bool string(string_t& value) override { return add(make(std::move(value))); }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return open(true); }
  bool key(string_t& value) override {
    stack_.back().key = make(std::move(value));
    return true;
  }
  bool end_object() override { return close(); }
  bool start_array(size_t) override { return open(false); }
  bool end_array() override { return close(); }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& e) override {
    bad(fmt::format("not valid JSON: {}", e.what()));
  }

  Value result() { return std::move(result_); }

 private:
  struct Frame {
    bool object = false;
    StrPtr key;
    Dict dict;
    std::vector<Value> items;
  };

  [[noreturn]] void bad(const std::string& text) const {
    throw Error(ErrorKind::kInvalidArgument, what_ + ": " + text);
  }

  StrPtr make(std::string text) {
    Str result{std::move(text), {}};
    if (mark_) result.mark_all();
    return std::get<StrPtr>(rt_.string(std::move(result)));
  }
  bool open(bool object) {
    if (stack_.size() + 1 >= kMaxValueDepth) bad(fmt::format("nested deeper than {} levels", kMaxValueDepth));
    stack_.emplace_back();
    stack_.back().object = object;
    return true;
  }
  bool close() {
    Frame frame = std::move(stack_.back());
    stack_.pop_back();
    return add(frame.object ? rt_.dict(std::move(frame.dict)) : rt_.list(std::move(frame.items)));
  }
  bool add(Value value) {
    if (stack_.empty()) {
      result_ = std::move(value);
    } else if (stack_.back().object) {
      stack_.back().dict.set(std::move(stack_.back().key), std::move(value));
    } else {
      stack_.back().items.push_back(std::move(value));
    }
    return true;
  }

  Runtime& rt_;
  bool mark_;
  const std::string& what_;
  std::vector<Frame> stack_;
  Value result_;
};

}  // namespace

Str to_text(Runtime& rt, const Value& value) {
  if (const Str* text = as_str(value)) return *text;
  if (is<Undefined>(value)) return {};
  Writer writer(rt);
  writer.repr(value);
  return writer.take();
}

Str to_json(Runtime& rt, const Value& value, const JsonStyle& style) {
  Writer writer(rt);
  writer.json(value, style, 0);
  return writer.take();
}

Value from_json(Runtime& rt, std::string_view text, bool mark, const std::string& what) {
  Reader reader(rt, mark, what);
  nlohmann::json::sax_parse(text.begin(), text.end(), &reader);
  return reader.result();
}

}  // namespace duet::jinja
