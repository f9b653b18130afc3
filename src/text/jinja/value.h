// The values of a chat template: what messages, tools and expressions are made of, with Python's
// semantics where templates can see them. Strings remember which of their bytes came from the
// request (`literal` spans), through every operation, so that the caller can keep a user's text
// from becoming control tokens. Values are immutable but for Namespace; none can form a cycle.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"
#include "text/added_tokens.h"
#include "text/chat_template.h"

namespace duet::jinja {

/// Text with the byte ranges (sorted, disjoint) that came from outside the template.
struct Str {
  std::string text;
  std::vector<TextSpan> literal;

  void append(std::string_view plain) { text.append(plain); }
  void append(const Str& other) { append_part(other, 0, other.text.size()); }
  void append_part(const Str& other, size_t begin, size_t end);
  void mark_all();
  Str part(size_t begin, size_t end) const;
};
using StrPtr = std::shared_ptr<const Str>;

struct List;
struct Dict;
struct Namespace;
struct Loop;
struct Function;
struct Undefined {
  std::string name;  // for the error when it is used
};
struct None {};

using Value = std::variant<Undefined, None, bool, int64_t, double, StrPtr, std::shared_ptr<const List>,
                           std::shared_ptr<const Dict>, std::shared_ptr<Namespace>,
                           std::shared_ptr<const Loop>, std::shared_ptr<const Function>>;

struct List {
  std::vector<Value> items;
  bool tuple = false;
  int depth = 1;
};

struct Dict {
  std::vector<std::pair<StrPtr, Value>> items;         // in order of insertion
  std::unordered_map<std::string_view, size_t> index;  // built beyond a few items
  int depth = 1;

  const Value* find(std::string_view key) const;
  void set(StrPtr key, Value value);
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> attributes;
};

struct Loop {
  std::shared_ptr<const List> items;
  size_t index = 0;
  int nesting = 0;
};

struct Macro;
/// A global function, a macro, or a method bound to its object.
struct Function {
  std::string name;
  const Macro* macro = nullptr;
  Value self;
  bool method = false;
};

using Limits = ChatLimits;

/// Deepest nesting of lists and dicts, of a request's JSON too.
inline constexpr int kMaxValueDepth = 100;

/// State that every operation needs: budget and the line for messages.
struct Runtime {
  Limits left;
  int line = 0;
  int64_t now_seconds = 0;  // Unix time for strftime_now

  void step(int64_t count = 1);
  void use_bytes(size_t bytes);
  [[noreturn]] void fail(const std::string& text, ErrorKind kind = ErrorKind::kInvalidArgument) const;
  [[noreturn]] void unsupported(const std::string& what) const;

  Value string(Str text);
  Value string(std::string_view text) { return string(Str{std::string(text), {}}); }
  Value list(std::vector<Value> items, bool tuple = false);
  Value dict(Dict dict);
};

template <typename T>
bool is(const Value& value) {
  return std::holds_alternative<T>(value);
}
inline const Str* as_str(const Value& value) {
  const auto* found = std::get_if<StrPtr>(&value);
  return found == nullptr ? nullptr : found->get();
}
inline const List* as_list(const Value& value) {
  const auto* found = std::get_if<std::shared_ptr<const List>>(&value);
  return found == nullptr ? nullptr : found->get();
}
inline const Dict* as_dict(const Value& value) {
  const auto* found = std::get_if<std::shared_ptr<const Dict>>(&value);
  return found == nullptr ? nullptr : found->get();
}
/// bool, int and float as Python's numbers; false for others.
bool as_number(const Value& value, double& number);
/// bool and int.
bool as_integer(const Value& value, int64_t& number);

const char* type_name(const Value& value);  // as Python calls it
bool truthy(const Value& value);
bool equal(Runtime& rt, const Value& a, const Value& b);
/// <0, 0, >0; fails on types that Python does not order.
int compare(Runtime& rt, const Value& a, const Value& b);
/// `needle in container`.
bool contains(Runtime& rt, const Value& container, const Value& needle);
/// str(value): what {{ value }} prints.
Str to_text(Runtime& rt, const Value& value);
int depth_of(const Value& value);
/// The elements that `for` visits; fails on what is not iterable.
std::shared_ptr<const List> iterate(Runtime& rt, const Value& value);
int64_t length(Runtime& rt, const Value& value);  // len(value), −1 when it has none

struct JsonStyle {
  bool ensure_ascii = false;
  int indent = -1;  // −1: one line
  bool sort_keys = false;
  std::string item_separator = ", ", key_separator = ": ";
};
/// json.dumps(value).
Str to_json(Runtime& rt, const Value& value, const JsonStyle& style);
/// Order of keys kept; strings are marked literal throughout when `mark`. `what` names the text in errors.
Value from_json(Runtime& rt, std::string_view text, bool mark, const std::string& what);

}  // namespace duet::jinja
