// Expressions of the interpreter.
#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <cmath>

#include "text/jinja/interpreter.h"

namespace duet::jinja {

namespace {

/// Python's floor division and modulo, whose signs follow the divisor.
int64_t floor_divide(int64_t a, int64_t b) {
  const int64_t quotient = a / b;
  return quotient - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);
}

}  // namespace

Value Interpreter::evaluate(const Expr& expr) {
  struct Depth {
    explicit Depth(Runtime& r) : rt(r) {
      if (--rt.left.nesting < 0) rt.fail("nested too deeply", ErrorKind::kResourceExhausted);
    }
    ~Depth() { ++rt.left.nesting; }
    Runtime& rt;
  } const depth(rt_);
  rt_.step();
  rt_.line = expr.line;
  const auto arg = [&](size_t i) { return evaluate(*expr.args[i]); };
  switch (expr.type) {
    case ExprType::kLiteral: return expr.value;
    case ExprType::kName: return lookup(expr.name);
    case ExprType::kList:
    case ExprType::kTuple:
    case ExprType::kDict: return evaluate_container(expr);
    case ExprType::kAttribute: return get_attribute(rt_, arg(0), expr.name);
    case ExprType::kItem: {
      const Value subject = arg(0);
      return get_item(rt_, subject, arg(1));
    }
    case ExprType::kSlice: {
      Value parts[4];
      for (size_t i = 0; i < 4; ++i) {
        if (expr.args[i] != nullptr) parts[i] = arg(i);
      }
      return get_slice(rt_, parts[0], parts[1], parts[2], parts[3]);
    }
    case ExprType::kCall: return evaluate_call(expr);
    case ExprType::kFilter: {
      const Value subject = arg(0);
      const Args args = arguments(expr);
      rt_.line = expr.line;
      return call_filter(rt_, expr.name, subject, args);
    }
    case ExprType::kTest: {
      const Value subject = arg(0);
      return call_test(rt_, expr.name, subject, arguments(expr));
    }
    case ExprType::kNot: return !truthy(arg(0));
    case ExprType::kNegative: return binary("-", int64_t{0}, arg(0));
    case ExprType::kPositive: return binary("+", int64_t{0}, arg(0));
    case ExprType::kAnd: {
      Value left = arg(0);
      return truthy(left) ? arg(1) : left;
    }
    case ExprType::kOr: {
      Value left = arg(0);
      return truthy(left) ? left : arg(1);
    }
    case ExprType::kBinary: {
      const Value left = arg(0), right = arg(1);
      rt_.line = expr.line;
      return binary(expr.name, left, right);
    }
    case ExprType::kConcatenate: {
      Str text;
      for (size_t i = 0; i < expr.args.size(); ++i) text.append(to_text(rt_, arg(i)));
      return rt_.string(std::move(text));
    }
    case ExprType::kCompare: return evaluate_compare(expr);
    case ExprType::kCondition:
      if (truthy(arg(1))) return arg(0);
      return expr.args[2] == nullptr ? Value(Undefined{"inline if without else"}) : arg(2);
  }
  rt_.fail("an expression of unknown kind", ErrorKind::kInternal);
}

Value Interpreter::evaluate_container(const Expr& expr) {
  if (expr.type == ExprType::kDict) {
    Dict dict;
    for (size_t i = 0; i + 1 < expr.args.size(); i += 2) {
      const Value key = evaluate(*expr.args[i]);
      if (!is<StrPtr>(key)) rt_.unsupported(fmt::format("a mapping key of type {}", type_name(key)));
      dict.set(std::get<StrPtr>(key), evaluate(*expr.args[i + 1]));
    }
    return rt_.dict(std::move(dict));
  }
  std::vector<Value> items;
  for (const ExprPtr& item : expr.args) items.push_back(evaluate(*item));
  return rt_.list(std::move(items), expr.type == ExprType::kTuple);
}

Value Interpreter::evaluate_compare(const Expr& expr) {
  Value left = evaluate(*expr.args[0]);
  for (size_t i = 0; i < expr.ops.size(); ++i) {  // a < b < c holds when every link holds
    const std::string& op = expr.ops[i];
    Value right = evaluate(*expr.args[i + 1]);
    bool holds = false;
    if (op == "==" || op == "!=") {
      holds = equal(rt_, left, right) == (op == "==");
    } else if (op == "in" || op == "not in") {
      holds = contains(rt_, right, left) == (op == "in");
    } else {
      const int order = compare(rt_, left, right);
      holds = op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0;
    }
    if (!holds) return false;
    left = std::move(right);
  }
  return true;
}

Args Interpreter::arguments(const Expr& expr) {
  Args args;
  for (size_t i = 1; i < expr.args.size(); ++i) args.positional.push_back(evaluate(*expr.args[i]));
  for (const auto& [name, value] : expr.named) args.named.emplace_back(name, evaluate(*value));
  return args;
}

/// Filters around an empty literal, as {% filter %} and {% set %} blocks keep them.
Value Interpreter::apply_filters(const Expr& expr, Value input) {
  if (expr.type == ExprType::kLiteral) return input;
  const Value subject = apply_filters(*expr.args[0], std::move(input));
  return call_filter(rt_, expr.name, subject, arguments(expr));
}

Value Interpreter::evaluate_call(const Expr& expr) {
  const Value callee = evaluate(*expr.args[0]);
  const Args args = arguments(expr);
  rt_.line = expr.line;
  const auto* function = std::get_if<std::shared_ptr<const Function>>(&callee);
  if (function == nullptr) {
    const auto* undefined = std::get_if<Undefined>(&callee);
    if (undefined != nullptr) rt_.fail(fmt::format("'{}' is undefined, it can't be called", undefined->name));
    rt_.fail(fmt::format("a {} can't be called", type_name(callee)));
  }
  if ((*function)->macro != nullptr) return call_macro(*(*function)->macro, args);
  if ((*function)->method) return call_method(rt_, (*function)->self, (*function)->name, args);
  return call_global((*function)->name, args);
}

Value Interpreter::call_macro(const Macro& macro, const Args& args) {
  if (args.positional.size() > macro.parameters.size()) {
    rt_.fail(fmt::format("macro '{}' takes {} arguments, found {}", macro.name, macro.parameters.size(),
                         args.positional.size()));
  }
  for (const auto& entry : args.named) {
    if (std::find(macro.parameters.begin(), macro.parameters.end(), entry.first) == macro.parameters.end()) {
      rt_.fail(fmt::format("macro '{}' has no parameter '{}'", macro.name, entry.first));
    }
  }
  const size_t outer_base = std::exchange(base_, scopes_.size());
  scopes_.emplace_back();
  for (size_t i = 0; i < macro.parameters.size(); ++i) {
    const std::string& name = macro.parameters[i];
    const auto named = std::find_if(args.named.begin(), args.named.end(),
                                    [&](const auto& entry) { return entry.first == name; });
    Value value = Undefined{name};
    if (i < args.positional.size()) {
      value = args.positional[i];
    } else if (named != args.named.end()) {
      value = named->second;
    } else if (macro.defaults[i] != nullptr) {
      value = evaluate(*macro.defaults[i]);
    }
    set(scopes_.back(), name, std::move(value));
  }
  Flow flow = Flow::kNormal;
  Str text = capture(macro.body, flow);
  scopes_.pop_back();
  base_ = outer_base;
  return rt_.string(std::move(text));
}

Value Interpreter::call_global(const std::string& name, const Args& args) {
  if (name == "raise_exception") {
    const auto a = args.bind(rt_, name, {"message"}, 1);
    rt_.fail(to_text(rt_, *a[0]).text);
  }
  if (name == "strftime_now") {
    const std::string& format = need_string(rt_, *args.bind(rt_, name, {"format"}, 1)[0], name).text;
    if (format.size() > 256) rt_.fail("strftime_now: a format beyond 256 bytes");
    const time_t seconds = rt_.now_seconds;
    struct tm local = {};
    char buffer[4096];
    localtime_r(&seconds, &local);
    return rt_.string(std::string_view(buffer, strftime(buffer, sizeof buffer, format.c_str(), &local)));
  }
  if (name == "range") {
    int64_t bounds[3] = {0, 0, 1};
    if (args.positional.empty() || args.positional.size() > 3 || !args.named.empty())
      rt_.fail("range takes one to three integers");
    for (size_t i = 0; i < args.positional.size(); ++i)
      bounds[i] = need_integer(rt_, args.positional[i], name);
    if (args.positional.size() == 1) std::swap(bounds[0], bounds[1]);
    const auto [start, stop, step] = bounds;
    if (step == 0) rt_.fail("range: the step is 0");
    std::vector<Value> items;
    for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
      rt_.step();
      rt_.use_bytes(sizeof(Value));
      items.emplace_back(i);
      if (__builtin_add_overflow(i, step, &i)) break;
    }
    return rt_.list(std::move(items));
  }
  // namespace(…) and dict(…)
  Dict dict;
  if (args.positional.size() > 1) rt_.fail(fmt::format("{} takes one mapping and named values", name));
  if (!args.positional.empty()) {
    const Dict* given = as_dict(args.positional[0]);
    if (given == nullptr) rt_.unsupported(fmt::format("{} of a {}", name, type_name(args.positional[0])));
    for (const auto& [key, value] : given->items) dict.set(key, value);
  }
  for (const auto& [key, value] : args.named) {
    dict.set(std::get<StrPtr>(rt_.string(key)), value);
  }
  if (name == "dict") return rt_.dict(std::move(dict));
  if (dict.depth > kMaxValueDepth)
    rt_.fail("a namespace can't hold a namespace or so deep a value", ErrorKind::kResourceExhausted);
  auto space = std::make_shared<Namespace>();
  for (const auto& [key, value] : dict.items) space->attributes.emplace_back(key->text, value);
  return space;
}

Value Interpreter::add(const Value& left, const Value& right) {
  const Str *a = as_str(left), *b = as_str(right);
  if (a != nullptr && b != nullptr) {
    rt_.use_bytes(a->text.size() + b->text.size());
    Str text = *a;
    text.append(*b);
    return rt_.string(std::move(text));
  }
  const List *x = as_list(left), *y = as_list(right);
  if (x != nullptr && y != nullptr && x->tuple == y->tuple) {
    std::vector<Value> items = x->items;
    items.insert(items.end(), y->items.begin(), y->items.end());
    return rt_.list(std::move(items), x->tuple);
  }
  rt_.fail(fmt::format("can't add {} and {}", type_name(left), type_name(right)));
}

Value Interpreter::multiply(const Value& left, const Value& right) {
  const bool swapped = is<int64_t>(left);
  const Value& what = swapped ? right : left;
  int64_t count = 0;
  if (!as_integer(swapped ? left : right, count))
    rt_.fail(fmt::format("can't multiply {} and {}", type_name(left), type_name(right)));
  count = std::max<int64_t>(count, 0);
  const int64_t unit =
      as_str(what) != nullptr
          ? static_cast<int64_t>(as_str(what)->text.size() + as_str(what)->literal.size() * sizeof(TextSpan))
      : as_list(what) != nullptr ? static_cast<int64_t>(as_list(what)->items.size() * sizeof(Value))
                                 : -1;
  if (unit < 0) rt_.fail(fmt::format("can't multiply {} and {}", type_name(left), type_name(right)));
  int64_t bytes = 0;
  if (__builtin_mul_overflow(unit, count, &bytes))
    rt_.fail("a repetition beyond all memory", ErrorKind::kResourceExhausted);
  rt_.use_bytes(static_cast<size_t>(bytes));
  if (unit == 0) count = 0;
  if (const Str* text = as_str(what)) {
    Str result;
    for (int64_t i = 0; i < count; ++i) result.append(*text);
    return rt_.string(std::move(result));
  }
  std::vector<Value> items;
  for (int64_t i = 0; i < count; ++i)
    items.insert(items.end(), as_list(what)->items.begin(), as_list(what)->items.end());
  return rt_.list(std::move(items), as_list(what)->tuple);
}

/// + - * and p(ower) of 64-bit integers; Python's would grow, ours refuse.
Value Interpreter::integer_operation(char op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  if (op == '+') overflow = __builtin_add_overflow(a, b, &result);
  if (op == '-') overflow = __builtin_sub_overflow(a, b, &result);
  if (op == '*') overflow = __builtin_mul_overflow(a, b, &result);
  if (op == 'p') {
    result = 1;
    const bool small = a >= -1 && a <= 1;  // these never overflow, and the parity is all that counts
    if (small && b > 2) b = 2 + b % 2;
    for (int64_t i = 0; i < b && !overflow; ++i) overflow = __builtin_mul_overflow(result, a, &result);
  }
  if (overflow) rt_.fail("an integer beyond 64 bits", ErrorKind::kUnsupported);
  return result;
}

Value Interpreter::binary(const std::string& op, const Value& left, const Value& right) {
  for (const Value* value : {&left, &right}) {
    if (const auto* undefined = std::get_if<Undefined>(value))
      rt_.fail(fmt::format("'{}' is undefined", undefined->name));
  }
  if (op == "%" && as_str(left) != nullptr) rt_.unsupported("string formatting with '%'");
  double x = 0, y = 0;
  if (!as_number(left, x) || !as_number(right, y)) {
    if (op == "+") return add(left, right);
    if (op == "*") return multiply(left, right);
    rt_.fail(fmt::format("'{}' can't take {} and {}", op, type_name(left), type_name(right)));
  }
  int64_t a = 0, b = 0;
  const bool integers = as_integer(left, a) && as_integer(right, b);
  if ((op == "/" || op == "//" || op == "%") && y == 0) rt_.fail("division by zero");
  if (op == "/") return x / y;
  if (integers && op != "**") {
    if (op == "//" || op == "%") {
      if (b == -1) return op == "%" ? Value(int64_t{0}) : integer_operation('-', 0, a);
      const int64_t quotient = floor_divide(a, b);
      return op == "//" ? quotient : a - quotient * b;
    }
    return integer_operation(op[0], a, b);
  }
  if (integers && b >= 0) return integer_operation('p', a, b);
  if (op == "+") return x + y;
  if (op == "-") return x - y;
  if (op == "*") return x * y;
  if (op == "//") return std::floor(x / y);
  if (op == "%") {
    const double rest = std::fmod(x, y);
    return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;
  }
  return std::pow(x, y);
}

}  // namespace duet::jinja
