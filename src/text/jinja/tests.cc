// Jinja's tests: `value is name`.
#include <fmt/format.h>

#include <algorithm>

#include "text/jinja/ast.h"
#include "text/jinja/builtins.h"

namespace duet::jinja {

namespace {

constexpr std::string_view kPlainTests[] = {
    "defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number", "integer",
    "float",   "boolean",   "true", "false",  "odd",     "even",     "callable", "lower",  "upper"};
constexpr std::string_view kBinaryTests[] = {"equalto",  "eq", "==", "ne", "!=",          "lt",
                                             "lessthan", "<",  "le", "<=", "gt",          "greaterthan",
                                             ">",        "ge", ">=", "in", "divisibleby", "sameas"};

bool found_in(const std::string& name, const auto& names) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

int64_t positive_modulo(const Runtime& rt, const Value& value, int64_t by) {
  const int64_t number = need_integer(rt, value, "a test of divisibility");
  if (by == 0) rt.fail("division by zero");
  if (by == -1) return 0;
  return number % by;
}

bool binary_test(Runtime& rt, const std::string& name, const Value& a, const Value& b) {
  if (name == "equalto" || name == "eq" || name == "==") return equal(rt, a, b);
  if (name == "ne" || name == "!=") return !equal(rt, a, b);
  if (name == "in") return contains(rt, b, a);
  if (name == "divisibleby") return positive_modulo(rt, a, need_integer(rt, b, name)) == 0;
  if (name == "sameas") return a.index() == b.index() && equal(rt, a, b);
  const int order = compare(rt, a, b);
  if (name == "lt" || name == "lessthan" || name == "<") return order < 0;
  if (name == "le" || name == "<=") return order <= 0;
  if (name == "gt" || name == "greaterthan" || name == ">") return order > 0;
  return order >= 0;
}

bool plain_test(Runtime& rt, const std::string& name, const Value& value) {
  if (name == "defined") return !is<Undefined>(value);
  if (name == "undefined") return is<Undefined>(value);
  if (name == "none") return is<None>(value);
  if (name == "string") return is<StrPtr>(value);
  if (name == "mapping") return as_dict(value) != nullptr;
  // Jinja's undefined can be iterated and has a length, so it counts as both.
  if (name == "iterable" || name == "sequence") return length(rt, value) >= 0;
  if (name == "boolean") return is<bool>(value);
  if (name == "integer") return is<int64_t>(value);
  if (name == "float") return is<double>(value);
  if (name == "number") return is<int64_t>(value) || is<double>(value) || is<bool>(value);
  if (name == "true") return is<bool>(value) && std::get<bool>(value);
  if (name == "false") return is<bool>(value) && !std::get<bool>(value);
  if (name == "odd") return positive_modulo(rt, value, 2) != 0;
  if (name == "even") return positive_modulo(rt, value, 2) == 0;
  if (name == "callable") return is<std::shared_ptr<const Function>>(value);
  const Str text = to_text(rt, value);  // lower, upper: some letter, and none of the other case
  const bool upper = name == "upper";
  return change_case(rt, text, upper ? Case::kUpper : Case::kLower).text == text.text &&
         change_case(rt, text, upper ? Case::kLower : Case::kUpper).text != text.text;
}

}  // namespace

bool is_test(const std::string& name) {
  return found_in(name, kPlainTests) || found_in(name, kBinaryTests);
}

bool call_test(Runtime& rt, const std::string& name, const Value& subject, const Args& args) {
  rt.step();
  if (found_in(name, kPlainTests)) {
    args.bind(rt, name, {});
    return plain_test(rt, name, subject);
  }
  if (!found_in(name, kBinaryTests)) rt.unsupported("test '" + name + "'");
  return binary_test(rt, name, subject, *args.bind(rt, name, {"other"}, 1)[0]);
}

}  // namespace duet::jinja
