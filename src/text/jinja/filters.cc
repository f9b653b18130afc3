// Jinja's filters.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "text/jinja/ast.h"
#include "text/jinja/builtins.h"

namespace duet::jinja {

std::vector<const Value*> Args::bind(const Runtime& rt, std::string_view what,
                                     std::initializer_list<std::string_view> parameters,
                                     size_t required) const {
  std::vector<const Value*> bound(parameters.size(), nullptr);
  if (positional.size() > parameters.size()) {
    rt.fail(fmt::format("{} takes {} arguments, found {}", what, parameters.size(), positional.size()));
  }
  for (size_t i = 0; i < positional.size(); ++i) bound[i] = &positional[i];
  for (const auto& [name, value] : named) {
    const auto found = std::find(parameters.begin(), parameters.end(), name);
    if (found == parameters.end()) rt.unsupported(fmt::format("argument '{}' of {}", name, what));
    bound[static_cast<size_t>(found - parameters.begin())] = &value;
  }
  for (size_t i = 0; i < required; ++i) {
    if (bound[i] == nullptr)
      rt.fail(fmt::format("{} needs its argument '{}'", what, *(parameters.begin() + i)));
  }
  return bound;
}

namespace {

bool flag(const Value* value, bool fallback) {
  return value == nullptr ? fallback : truthy(*value);
}

/// 'a.b.0' as map(attribute=…) and sort(attribute=…) read it.
Value attribute_path(Runtime& rt, const Value& item, const Value& path) {
  int64_t index = 0;
  if (as_integer(path, index)) return get_item(rt, item, path);
  std::string_view rest = need_string(rt, path, "attribute").text;
  Value value = item;
  while (true) {
    const size_t dot = rest.find('.');
    const std::string part(rest.substr(0, dot));
    const bool digits = !part.empty() && part.size() < 10 &&
                        std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    value = get_item(rt, value, digits ? Value(int64_t{std::stol(part)}) : rt.string(part));
    if (dot == std::string_view::npos) return value;
    rest.remove_prefix(dot + 1);
  }
}

Value filter_default(Runtime& rt, const Value& subject, const Args& args) {
  const auto a = args.bind(rt, "default", {"default_value", "boolean"});
  const bool missing = is<Undefined>(subject) || (flag(a[1], false) && !truthy(subject));
  if (!missing) return subject;
  return a[0] != nullptr ? *a[0] : rt.string("");
}

Value filter_join(Runtime& rt, const Value& subject, const Args& args) {
  const auto a = args.bind(rt, "join", {"d", "attribute"});
  const Str separator = a[0] == nullptr ? Str{} : to_text(rt, *a[0]);
  Str result;
  bool first = true;
  const auto list = iterate(rt, subject);  // held: the loop only borrows
  for (const Value& item : list->items) {
    if (!first) result.append(separator);
    first = false;
    const Str text = to_text(rt, a[1] == nullptr ? item : attribute_path(rt, item, *a[1]));
    rt.use_bytes(text.text.size() + separator.text.size());
    result.append(text);
  }
  return rt.string(std::move(result));
}

Value filter_replace(Runtime& rt, const Value& subject, const Args& args) {
  const auto a = args.bind(rt, "replace", {"old", "new", "count"}, 2);
  return rt.string(replace(rt, to_text(rt, subject), to_text(rt, *a[0]).text, to_text(rt, *a[1]),
                           a[2] == nullptr || is<None>(*a[2]) ? -1 : need_integer(rt, *a[2], "replace")));
}

Value filter_ends(Runtime& rt, const Value& subject, bool first) {
  if (as_str(subject) != nullptr) return get_item(rt, subject, int64_t{first ? 0 : -1});
  const auto list = iterate(rt, subject);
  if (list->items.empty()) return Undefined{first ? "first item of nothing" : "last item of nothing"};
  return first ? list->items.front() : list->items.back();
}

Value filter_length(Runtime& rt, const Value& subject) {
  const int64_t size = length(rt, subject);
  if (size < 0) rt.fail(fmt::format("{} has no length", type_name(subject)));
  return size;
}

Value filter_items(Runtime& rt, const Value& subject) {
  if (is<Undefined>(subject)) return rt.list({});
  if (as_dict(subject) == nullptr)
    rt.fail(fmt::format("'items' needs a mapping, found {}", type_name(subject)));
  return call_method(rt, subject, "items", {});
}

/// The number a whole string spells, blanks around it allowed.
bool parse_float(std::string_view text, double& number) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\n' || text.front() == '\t'))
    text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\n' || text.back() == '\t'))
    text.remove_suffix(1);
  if (!text.empty() && text.front() == '+') text.remove_prefix(1);
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
  return parsed.ec == std::errc() && parsed.ptr == text.data() + text.size();
}

Value filter_number(Runtime& rt, const Value& subject, const Args& args, bool integer) {
  const auto a = args.bind(rt, integer ? "int" : "float", {"default"});
  const Value fallback = a[0] != nullptr ? *a[0] : integer ? Value(int64_t{0}) : Value(0.0);
  int64_t whole = 0;
  if (integer && as_integer(subject, whole)) return whole;
  double number = 0;
  if (const Str* text = as_str(subject)) {
    if (integer) {
      const Str bare = strip(rt, *text, nullptr, true, true);
      const auto parsed = std::from_chars(bare.text.data(), bare.text.data() + bare.text.size(), whole);
      if (parsed.ec == std::errc() && parsed.ptr == bare.text.data() + bare.text.size()) return whole;
    }
    if (!parse_float(text->text, number)) return fallback;
  } else if (!as_number(subject, number)) {
    return fallback;
  }
  if (!integer) return number;
  if (!(std::abs(number) < 9e18)) return fallback;
  return static_cast<int64_t>(number);
}

Value filter_round(Runtime& rt, const Value& subject, const Args& args) {
  const auto a = args.bind(rt, "round", {"precision", "method"});
  double number = 0;
  if (!as_number(subject, number))
    rt.fail(fmt::format("'round' needs a number, found {}", type_name(subject)));
  const int64_t precision =
      a[0] == nullptr ? 0 : std::clamp<int64_t>(need_integer(rt, *a[0], "round"), -300, 300);
  const std::string method = a[1] == nullptr ? "common" : need_string(rt, *a[1], "round").text;
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (method == "ceil") return std::ceil(number * scale) / scale;
  if (method == "floor") return std::floor(number * scale) / scale;
  if (method != "common") rt.fail("'round' knows common, ceil and floor");
  return std::nearbyint(number * scale) / scale;  // halves to even, as Python
}

Value filter_tojson(Runtime& rt, const Value& subject, const Args& args) {
  const auto a = args.bind(rt, "tojson", {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = flag(a[0], false);
  style.sort_keys = flag(a[3], false);
  if (a[1] != nullptr && !is<None>(*a[1])) {
    style.indent = static_cast<int>(std::clamp<int64_t>(need_integer(rt, *a[1], "tojson's indent"), 0, 64));
    style.item_separator = ",";
  }
  if (a[2] != nullptr && !is<None>(*a[2])) {
    const List* pair = as_list(*a[2]);
    if (pair == nullptr || pair->items.size() != 2) rt.fail("tojson's separators should be two strings");
    style.item_separator = need_string(rt, pair->items[0], "tojson's separators").text;
    style.key_separator = need_string(rt, pair->items[1], "tojson's separators").text;
  }
  return rt.string(to_json(rt, subject, style));
}

Value filter_map(Runtime& rt, const Value& subject, const Args& args) {
  std::vector<Value> result;
  const auto list = iterate(rt, subject);
  if (args.positional.empty()) {
    const auto a = args.bind(rt, "map", {"attribute", "default"}, 1);
    for (const Value& item : list->items) {
      Value value = attribute_path(rt, item, *a[0]);
      result.push_back(is<Undefined>(value) && a[1] != nullptr ? *a[1] : std::move(value));
    }
    return rt.list(std::move(result));
  }
  const std::string name = need_string(rt, args.positional[0], "map").text;
  if (!is_filter(name)) rt.unsupported("filter '" + name + "'");
  const Args rest{{args.positional.begin() + 1, args.positional.end()}, args.named};
  for (const Value& item : list->items) result.push_back(call_filter(rt, name, item, rest));
  return rt.list(std::move(result));
}

/// select, reject, selectattr, rejectattr.
Value filter_select(Runtime& rt, const Value& subject, const Args& args, bool attribute, bool keep) {
  size_t next = attribute ? 1 : 0;
  if (args.positional.size() < next) rt.fail("selectattr and rejectattr need an attribute");
  std::string test;
  if (args.positional.size() > next) {
    test = need_string(rt, args.positional[next], "select").text;
    if (!is_test(test)) rt.unsupported("test '" + test + "'");
    ++next;
  }
  const Args rest{{args.positional.begin() + static_cast<ptrdiff_t>(next), args.positional.end()},
                  args.named};
  std::vector<Value> result;
  const auto list = iterate(rt, subject);  // held: the loop only borrows
  for (const Value& item : list->items) {
    const Value value = attribute ? attribute_path(rt, item, args.positional[0]) : item;
    if ((test.empty() ? truthy(value) : call_test(rt, test, value, rest)) == keep) result.push_back(item);
  }
  return rt.list(std::move(result));
}

Value folded(Runtime& rt, const Value& value, bool case_sensitive) {
  const Str* text = as_str(value);
  return text == nullptr || case_sensitive ? value : rt.string(change_case(rt, *text, Case::kLower));
}

Value filter_sort(Runtime& rt, const Value& subject, const Args& args) {
  const auto a = args.bind(rt, "sort", {"reverse", "case_sensitive", "attribute"});
  std::vector<std::pair<Value, Value>> keyed;
  const auto list = iterate(rt, subject);  // held: the loop only borrows
  for (const Value& item : list->items) {
    const Value key = a[2] == nullptr || is<None>(*a[2]) ? item : attribute_path(rt, item, *a[2]);
    keyed.emplace_back(folded(rt, key, flag(a[1], false)), item);
  }
  const bool reverse = flag(a[0], false);
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& x, const auto& y) {
    return reverse ? compare(rt, y.first, x.first) < 0 : compare(rt, x.first, y.first) < 0;
  });
  std::vector<Value> result;
  for (auto& entry : keyed) result.push_back(std::move(entry.second));
  return rt.list(std::move(result));
}

Value filter_dictsort(Runtime& rt, const Value& subject, const Args& args) {
  const auto a = args.bind(rt, "dictsort", {"case_sensitive", "by", "reverse"});
  const bool by_value = a[1] != nullptr && need_string(rt, *a[1], "dictsort").text == "value";
  Args sort;
  sort.named = {{"reverse", Value(flag(a[2], false))},
                {"case_sensitive", Value(flag(a[0], false))},
                {"attribute", Value(int64_t{by_value ? 1 : 0})}};
  return filter_sort(rt, filter_items(rt, subject), sort);
}

Value filter_unique(Runtime& rt, const Value& subject, const Args& args) {
  const auto a = args.bind(rt, "unique", {"case_sensitive", "attribute"});
  std::vector<Value> result, keys;
  const auto list = iterate(rt, subject);  // held: the loop only borrows
  for (const Value& item : list->items) {
    const Value key = folded(rt, a[1] == nullptr ? item : attribute_path(rt, item, *a[1]), flag(a[0], false));
    if (std::any_of(keys.begin(), keys.end(), [&](const Value& seen) { return equal(rt, seen, key); }))
      continue;
    keys.push_back(key);
    result.push_back(item);
  }
  return rt.list(std::move(result));
}

Value filter_reverse(Runtime& rt, const Value& subject) {
  if (as_str(subject) != nullptr) return get_slice(rt, subject, None{}, None{}, int64_t{-1});
  std::vector<Value> items = iterate(rt, subject)->items;
  std::reverse(items.begin(), items.end());
  return rt.list(std::move(items));
}

Value filter_indent(Runtime& rt, const Value& subject, const Args& args) {
  const auto a = args.bind(rt, "indent", {"width", "first", "blank"});
  Str indention;
  if (a[0] != nullptr && as_str(*a[0]) != nullptr) {
    indention = *as_str(*a[0]);
  } else {
    const int64_t width = a[0] == nullptr ? 4 : need_integer(rt, *a[0], "indent");
    indention.text.assign(static_cast<size_t>(std::clamp<int64_t>(width, 0, 1000)), ' ');
  }
  Str text = to_text(rt, subject);
  text.append("\n");  // so that a last empty line counts
  Str result;
  bool first = true;
  for (const Str& line : split_lines(text)) {
    rt.use_bytes(line.text.size() + indention.text.size());
    if (!first) result.append("\n");
    if (first ? flag(a[1], false) : flag(a[2], false) || !line.text.empty()) result.append(indention);
    result.append(line);
    first = false;
  }
  return rt.string(std::move(result));
}

Value filter_extreme(Runtime& rt, const Value& subject, bool largest) {
  const auto list = iterate(rt, subject);
  if (list->items.empty()) return Undefined{"extreme of nothing"};
  const Value* best = &list->items[0];
  for (const Value& item : list->items) {
    const int order = compare(rt, folded(rt, item, false), folded(rt, *best, false));
    if (largest ? order > 0 : order < 0) best = &item;
  }
  return *best;
}

Value filter_sum(Runtime& rt, const Value& subject, const Args& args) {
  const auto a = args.bind(rt, "sum", {"attribute", "start"});
  int64_t whole = a[1] == nullptr ? 0 : need_integer(rt, *a[1], "sum");
  double real = 0;
  bool integers = true;
  const auto list = iterate(rt, subject);  // held: the loop only borrows
  for (const Value& item : list->items) {
    const Value value = a[0] == nullptr || is<None>(*a[0]) ? item : attribute_path(rt, item, *a[0]);
    int64_t integer = 0;
    double number = 0;
    if (as_integer(value, integer)) {
      if (__builtin_add_overflow(whole, integer, &whole)) rt.fail("a sum beyond 64 bits");
    } else if (as_number(value, number)) {
      integers = false;
      real += number;
    } else {
      rt.fail(fmt::format("'sum' needs numbers, found {}", type_name(value)));
    }
  }
  return integers ? Value(whole) : Value(real + static_cast<double>(whole));
}

Value filter_abs(Runtime& rt, const Value& subject) {
  int64_t whole = 0;
  if (as_integer(subject, whole) && whole != INT64_MIN) return whole < 0 ? -whole : whole;
  double number = 0;
  if (!as_number(subject, number)) rt.fail(fmt::format("'abs' needs a number, found {}", type_name(subject)));
  return std::abs(number);
}

Value filter_trim(Runtime& rt, const Value& subject, const Args& args) {
  return rt.string(strip(rt, to_text(rt, subject), args.bind(rt, "trim", {"chars"})[0], true, true));
}

using Plain = Value (*)(Runtime&, const Value&);
using WithArgs = Value (*)(Runtime&, const Value&, const Args&);
struct Filter {
  std::string_view name;
  Plain plain;  // takes no arguments
  WithArgs with_args;
};

template <Case how>
Value filter_case(Runtime& rt, const Value& subject) {
  return rt.string(change_case(rt, to_text(rt, subject), how));
}

constexpr Filter kFilters[] = {
    {"abs", filter_abs, nullptr},
    {"capitalize", filter_case<Case::kCapitalize>, nullptr},
    {"count", filter_length, nullptr},
    {"d", nullptr, filter_default},
    {"default", nullptr, filter_default},
    {"dictsort", nullptr, filter_dictsort},
    {"first", [](Runtime& rt, const Value& v) { return filter_ends(rt, v, true); }, nullptr},
    {"float", nullptr,
     [](Runtime& rt, const Value& v, const Args& a) { return filter_number(rt, v, a, false); }},
    {"indent", nullptr, filter_indent},
    {"int", nullptr,
     [](Runtime& rt, const Value& v, const Args& a) { return filter_number(rt, v, a, true); }},
    {"items", filter_items, nullptr},
    {"join", nullptr, filter_join},
    {"last", [](Runtime& rt, const Value& v) { return filter_ends(rt, v, false); }, nullptr},
    {"length", filter_length, nullptr},
    {"list", [](Runtime& rt, const Value& v) { return rt.list(iterate(rt, v)->items); }, nullptr},
    {"lower", filter_case<Case::kLower>, nullptr},
    {"map", nullptr, filter_map},
    {"max", [](Runtime& rt, const Value& v) { return filter_extreme(rt, v, true); }, nullptr},
    {"min", [](Runtime& rt, const Value& v) { return filter_extreme(rt, v, false); }, nullptr},
    {"reject", nullptr,
     [](Runtime& rt, const Value& v, const Args& a) { return filter_select(rt, v, a, false, false); }},
    {"rejectattr", nullptr,
     [](Runtime& rt, const Value& v, const Args& a) { return filter_select(rt, v, a, true, false); }},
    {"replace", nullptr, filter_replace},
    {"reverse", filter_reverse, nullptr},
    {"round", nullptr, filter_round},
    {"safe", [](Runtime& rt, const Value& v) { return rt.string(to_text(rt, v)); }, nullptr},
    {"select", nullptr,
     [](Runtime& rt, const Value& v, const Args& a) { return filter_select(rt, v, a, false, true); }},
    {"selectattr", nullptr,
     [](Runtime& rt, const Value& v, const Args& a) { return filter_select(rt, v, a, true, true); }},
    {"sort", nullptr, filter_sort},
    {"string", [](Runtime& rt, const Value& v) { return rt.string(to_text(rt, v)); }, nullptr},
    {"sum", nullptr, filter_sum},
    {"title", filter_case<Case::kWords>, nullptr},
    {"tojson", nullptr, filter_tojson},
    {"trim", nullptr, filter_trim},
    {"unique", nullptr, filter_unique},
    {"upper", filter_case<Case::kUpper>, nullptr},
};

const Filter* find_filter(const std::string& name) {
  const auto* found =
      std::find_if(std::begin(kFilters), std::end(kFilters), [&](const Filter& f) { return f.name == name; });
  return found == std::end(kFilters) ? nullptr : found;
}

}  // namespace

bool is_filter(const std::string& name) {
  return find_filter(name) != nullptr;
}

Value call_filter(Runtime& rt, const std::string& name, const Value& subject, const Args& args) {
  rt.step();
  const Filter* filter = find_filter(name);
  if (filter == nullptr) rt.unsupported("filter '" + name + "'");
  if (filter->with_args != nullptr) return filter->with_args(rt, subject, args);
  args.bind(rt, name, {});
  return filter->plain(rt, subject);
}

}  // namespace duet::jinja
