// What templates can call: filters, tests, methods of strings, lists and mappings. Names that Jinja
// has and we do not are refused by name. Used by the interpreter and (for the names) the parser.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/value.h"

namespace duet::jinja {

struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  /// The arguments in the order of `parameters`, null where none was given; too many or unknown
  /// ones fail, saying `what`. The first `required` must be there.
  std::vector<const Value*> bind(const Runtime& rt, std::string_view what,
                                 std::initializer_list<std::string_view> parameters,
                                 size_t required = 0) const;
};

Value call_filter(Runtime& rt, const std::string& name, const Value& subject, const Args& args);
bool call_test(Runtime& rt, const std::string& name, const Value& subject, const Args& args);
Value call_method(Runtime& rt, const Value& self, const std::string& name, const Args& args);

/// value.name, Undefined when there is no such attribute; fails on an undefined value.
Value get_attribute(Runtime& rt, const Value& value, const std::string& name);
/// value[key], Undefined when there is no such item.
Value get_item(Runtime& rt, const Value& value, const Value& key);
/// value[start:stop:step] of strings (by code point) and lists; None and Undefined mean absent.
Value get_slice(Runtime& rt, const Value& value, const Value& start, const Value& stop, const Value& step);

/// Helpers of the string filters and methods.
Str strip(Runtime& rt, const Str& text, const Value* characters, bool left, bool right);
enum class Case { kUpper, kLower, kTitle, kWords, kCapitalize };  // kTitle: str.title; kWords: Jinja's title
Str change_case(Runtime& rt, const Str& text, Case how);
Str replace(Runtime& rt, const Str& text, std::string_view old, const Str& fresh, int64_t count);
/// The string or a failure naming `what`.
const Str& need_string(const Runtime& rt, const Value& value, std::string_view what);
int64_t need_integer(const Runtime& rt, const Value& value, std::string_view what);
std::vector<Str> split_lines(const Str& text);

}  // namespace duet::jinja
