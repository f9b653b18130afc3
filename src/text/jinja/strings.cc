// Strings: case, stripping, splitting, slicing; everything that methods and filters share.
#include <fmt/format.h>
#include <locale.h>
#include <wctype.h>

#include <algorithm>

#include "text/jinja/builtins.h"
#include "text/utf8.h"

namespace duet::jinja {

namespace {

bool python_space(char32_t code) {
  return is_space(code) || (code >= 0x1C && code <= 0x1F);
}

/// Simple case mapping of all of Unicode, from the C library's own C.UTF-8.
char32_t map_case(char32_t code, bool upper) {
  if (code < 0x80) {
    if (upper) return code >= 'a' && code <= 'z' ? code - 32 : code;
    return code >= 'A' && code <= 'Z' ? code + 32 : code;
  }
  static const locale_t locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr);
  if (locale == nullptr) return code;
  return static_cast<char32_t>(upper ? towupper_l(static_cast<wint_t>(code), locale)
                                     : towlower_l(static_cast<wint_t>(code), locale));
}

bool is_letter(char32_t code) {
  return map_case(code, true) != code || map_case(code, false) != code;
}

std::vector<size_t> starts_of(Runtime& rt, const std::string& text) {
  rt.use_bytes(text.size());
  std::vector<size_t> starts;
  for (size_t i = 0; i < text.size(); ++i) {
    if (!is_continuation(text[i])) starts.push_back(i);
  }
  starts.push_back(text.size());
  return starts;
}

}  // namespace

const Str& need_string(const Runtime& rt, const Value& value, std::string_view what) {
  const Str* text = as_str(value);
  if (text == nullptr) rt.fail(fmt::format("{} needs a string, found {}", what, type_name(value)));
  return *text;
}

int64_t need_integer(const Runtime& rt, const Value& value, std::string_view what) {
  int64_t number = 0;
  if (!as_integer(value, number))
    rt.fail(fmt::format("{} needs an integer, found {}", what, type_name(value)));
  return number;
}

Str strip(Runtime& rt, const Str& text, const Value* characters, bool left, bool right) {
  std::u32string set;
  const bool given = characters != nullptr && !is<None>(*characters);
  if (given) {
    const std::string& chars = need_string(rt, *characters, "strip").text;
    for (size_t at = 0; at < chars.size();) set.push_back(next_code_point(chars, at));
  }
  const auto drops = [&](char32_t code) {
    return given ? set.find(code) != std::u32string::npos : python_space(code);
  };
  size_t begin = 0, end = text.text.size();
  while (left && begin < end) {
    size_t next = begin;
    rt.step(1 + static_cast<int64_t>(set.size() / 16));
    if (!drops(next_code_point(text.text, next))) break;
    begin = next;
  }
  while (right && begin < end) {
    size_t start = end - 1;
    while (is_continuation(text.text[start])) --start;
    size_t next = start;
    rt.step(1 + static_cast<int64_t>(set.size() / 16));
    if (!drops(next_code_point(text.text, next))) break;
    end = start;
  }
  return text.part(begin, end);
}

Str change_case(Runtime& rt, const Str& text, Case how) {
  rt.use_bytes(text.text.size());
  Str result;
  bool word_begins = true;
  for (size_t at = 0; at < text.text.size();) {
    const char32_t code = next_code_point(text.text, at);
    const bool upper = how == Case::kUpper || (how != Case::kLower && word_begins);
    append_utf8(result.text, map_case(code, upper));
    word_begins =
        (how == Case::kTitle && !is_letter(code)) ||
        (how == Case::kWords &&
         (python_space(code) || (code < 0x80 && std::string_view("-({[<").find(static_cast<char>(code)) !=
                                                    std::string_view::npos)));
  }
  if (!text.literal.empty()) result.mark_all();
  return result;
}

Str replace(Runtime& rt, const Str& text, std::string_view old, const Str& fresh, int64_t count) {
  Str result;
  size_t done = 0;
  if (old.empty()) {  // Python puts it between all code points
    for (size_t at = 0; at <= text.text.size() && count != 0; --count) {
      rt.use_bytes(fresh.text.size() + 1);
      result.append(fresh);
      if (at == text.text.size()) break;
      done = at + utf8_length(text.text[at]);
      result.append_part(text, at, done);
      at = done;
    }
    result.append_part(text, done, text.text.size());
    return result;
  }
  rt.use_bytes(text.text.size());
  for (size_t found = text.text.find(old); found != std::string::npos && count != 0; --count) {
    rt.use_bytes(fresh.text.size() + 1);
    result.append_part(text, done, found);
    result.append(fresh);
    done = found + old.size();
    found = text.text.find(old, done);
  }
  result.append_part(text, done, text.text.size());
  return result;
}

std::vector<Str> split_lines(const Str& text) {
  std::vector<Str> lines;
  size_t begin = 0;
  while (begin < text.text.size()) {
    size_t end = text.text.find_first_of("\n\r", begin);
    if (end == std::string::npos) end = text.text.size();
    lines.push_back(text.part(begin, end));
    begin = end + (text.text.compare(end, 2, "\r\n") == 0 ? 2 : 1);
  }
  return lines;
}

namespace {

Value split(Runtime& rt, const Str& text, const Value* separator, int64_t most, bool from_right) {
  std::vector<std::pair<size_t, size_t>> cuts;  // what separates
  const bool blank = separator == nullptr || is<None>(*separator);
  rt.step(static_cast<int64_t>(text.text.size()));
  if (blank) {
    for (size_t at = 0; at < text.text.size();) {
      size_t end = at;
      if (!python_space(next_code_point(text.text, end))) {
        at = end;
        continue;
      }
      if (!cuts.empty() && cuts.back().second == at) {
        cuts.back().second = end;
      } else {
        cuts.emplace_back(at, end);
      }
      at = end;
    }
  } else {
    const std::string& mark = need_string(rt, *separator, "split").text;
    if (mark.empty()) rt.fail("split with an empty separator");
    if (from_right) {
      for (size_t found = text.text.rfind(mark); found != std::string::npos;) {
        cuts.emplace_back(found, found + mark.size());
        if (found < mark.size() || (most >= 0 && static_cast<int64_t>(cuts.size()) >= most)) break;
        found = text.text.rfind(mark, found - mark.size());
      }
      std::reverse(cuts.begin(), cuts.end());
    } else {
      for (size_t found = text.text.find(mark); found != std::string::npos;
           found = text.text.find(mark, found + mark.size())) {
        cuts.emplace_back(found, found + mark.size());
      }
    }
  }
  size_t begin = 0, end = text.text.size();
  if (blank) {  // no empty words at the ends
    // The side that splitting starts from is always trimmed; the other only while splits are left.
    const auto trim = [&](bool front, bool always) {
      if (cuts.empty() || (front ? cuts.front().first != 0 : cuts.back().second != end)) return;
      if (!always && most >= 0 && static_cast<int64_t>(cuts.size()) - 1 >= most) return;
      if (front) {
        begin = cuts.front().second;
        cuts.erase(cuts.begin());
      } else {
        end = cuts.back().first;
        cuts.pop_back();
      }
    };
    trim(!from_right, true);
    trim(from_right, false);
    if (begin == end) return rt.list({});
  }
  if (most >= 0 && static_cast<int64_t>(cuts.size()) > most) {
    if (from_right) {
      cuts.erase(cuts.begin(), cuts.end() - static_cast<ptrdiff_t>(most));
    } else {
      cuts.resize(static_cast<size_t>(most));
    }
  }
  std::vector<Value> parts;
  for (const auto& [from, to] : cuts) {
    parts.push_back(rt.string(text.part(begin, from)));
    begin = to;
  }
  parts.push_back(rt.string(text.part(begin, end)));
  return rt.list(std::move(parts));
}

bool has_affix(const Runtime& rt, const Str& text, const Value& affix, bool front) {
  if (const List* list = as_list(affix)) {
    return std::any_of(list->items.begin(), list->items.end(),
                       [&](const Value& one) { return has_affix(rt, text, one, front); });
  }
  const std::string& part = need_string(rt, affix, front ? "startswith" : "endswith").text;
  return front ? text.text.starts_with(part) : text.text.ends_with(part);
}

int64_t code_points(const std::string& text, size_t end) {
  return std::count_if(text.begin(), text.begin() + static_cast<ptrdiff_t>(end),
                       [](char c) { return !is_continuation(c); });
}

Value string_method(Runtime& rt, const Str& text, const std::string& name, const Args& args) {
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const auto a = args.bind(rt, name, {"chars"});
    return rt.string(strip(rt, text, a[0], name != "rstrip", name != "lstrip"));
  }
  if (name == "split" || name == "rsplit") {
    const auto a = args.bind(rt, name, {"sep", "maxsplit"});
    return split(rt, text, a[0], a[1] == nullptr ? -1 : need_integer(rt, *a[1], name), name == "rsplit");
  }
  if (name == "splitlines") {
    args.bind(rt, name, {});
    std::vector<Value> lines;
    for (Str& line : split_lines(text)) lines.push_back(rt.string(std::move(line)));
    return rt.list(std::move(lines));
  }
  if (name == "startswith" || name == "endswith") {
    return has_affix(rt, text, *args.bind(rt, name, {"affix"}, 1)[0], name == "startswith");
  }
  if (name == "removeprefix" || name == "removesuffix") {
    const std::string& affix = need_string(rt, *args.bind(rt, name, {"affix"}, 1)[0], name).text;
    const size_t size = text.text.size();
    if (name == "removeprefix") {
      return rt.string(text.text.starts_with(affix) ? text.part(affix.size(), size) : text);
    }
    return rt.string(text.text.ends_with(affix) ? text.part(0, size - affix.size()) : text);
  }
  if (name == "upper" || name == "lower" || name == "title" || name == "capitalize") {
    args.bind(rt, name, {});
    return rt.string(change_case(rt, text,
                                 name == "upper"   ? Case::kUpper
                                 : name == "lower" ? Case::kLower
                                 : name == "title" ? Case::kTitle
                                                   : Case::kCapitalize));
  }
  if (name == "replace") {
    const auto a = args.bind(rt, name, {"old", "new", "count"}, 2);
    return rt.string(replace(rt, text, need_string(rt, *a[0], name).text, need_string(rt, *a[1], name),
                             a[2] == nullptr ? -1 : need_integer(rt, *a[2], name)));
  }
  if (name == "find" || name == "rfind") {
    rt.step(static_cast<int64_t>(text.text.size() / 16));
    const std::string& part = need_string(rt, *args.bind(rt, name, {"sub"}, 1)[0], name).text;
    const size_t found = name == "find" ? text.text.find(part) : text.text.rfind(part);
    return found == std::string::npos ? int64_t{-1} : code_points(text.text, found);
  }
  if (name == "count") {
    rt.step(static_cast<int64_t>(text.text.size() / 16));
    const std::string& part = need_string(rt, *args.bind(rt, name, {"sub"}, 1)[0], name).text;
    if (part.empty()) return length(rt, rt.string(text)) + 1;
    int64_t count = 0;
    for (size_t at = text.text.find(part); at != std::string::npos;
         at = text.text.find(part, at + part.size()))
      ++count;
    return count;
  }
  if (name == "join")
    return call_filter(rt, "join", *args.bind(rt, name, {"iterable"}, 1)[0], {{rt.string(text)}, {}});
  if (name == "isdigit" || name == "isspace") {
    args.bind(rt, name, {});
    bool all = !text.text.empty();
    for (size_t at = 0; all && at < text.text.size();) {
      const char32_t code = next_code_point(text.text, at);
      all = name == "isspace" ? python_space(code) : code >= '0' && code <= '9';
    }
    return all;
  }
  rt.unsupported("string method '" + name + "'");
}

bool known_string_method(const std::string& name) {
  static constexpr std::string_view kNames[] = {
      "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "startswith", "endswith", "removeprefix",
      "removesuffix", "upper", "lower", "title", "capitalize", "replace", "find", "rfind", "count", "join",
      "isdigit", "isspace",
      // Python has these, calling one is refused by name:
      "casefold", "center", "encode", "expandtabs", "format", "format_map", "index", "isalnum", "isalpha",
      "isascii", "isdecimal", "isidentifier", "islower", "isnumeric", "isprintable", "istitle", "isupper",
      "ljust", "maketrans", "partition", "rindex", "rjust", "rpartition", "swapcase", "translate", "zfill"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

bool known_dict_method(const std::string& name) {
  static constexpr std::string_view kNames[] = {"items", "keys",   "values",     "get",     "copy",    "pop",
                                                "clear", "update", "setdefault", "popitem", "fromkeys"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

bool known_list_method(const std::string& name) {
  static constexpr std::string_view kNames[] = {"index", "count", "append", "extend",  "insert", "pop",
                                                "copy",  "clear", "remove", "reverse", "sort"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

Value loop_attribute(Runtime& rt, const Loop& loop, const std::shared_ptr<const Loop>& self,
                     const std::string& name) {
  const auto index = static_cast<int64_t>(loop.index), size = static_cast<int64_t>(loop.items->items.size());
  if (name == "index") return index + 1;
  if (name == "index0") return index;
  if (name == "revindex") return size - index;
  if (name == "revindex0") return size - index - 1;
  if (name == "first") return index == 0;
  if (name == "last") return index == size - 1;
  if (name == "length") return size;
  if (name == "depth") return int64_t{1};
  if (name == "depth0") return int64_t{0};
  if (name == "previtem") return index > 0 ? loop.items->items[index - 1] : Value(Undefined{"loop.previtem"});
  if (name == "nextitem")
    return index + 1 < size ? loop.items->items[index + 1] : Value(Undefined{"loop.nextitem"});
  if (name == "cycle") return std::make_shared<const Function>(Function{name, nullptr, self, true});
  if (name == "changed") rt.unsupported("loop.changed");
  return Undefined{"loop." + name};
}

}  // namespace

Value get_attribute(Runtime& rt, const Value& value, const std::string& name) {
  rt.step();
  const auto bound = [&] { return std::make_shared<const Function>(Function{name, nullptr, value, true}); };
  if (const auto* undefined = std::get_if<Undefined>(&value)) {
    rt.fail(fmt::format("'{}' is undefined, it has no attribute '{}'", undefined->name, name));
  }
  if (const Dict* dict = as_dict(value)) {
    if (known_dict_method(name)) return bound();
    const Value* found = dict->find(name);
    return found == nullptr ? Value(Undefined{name}) : *found;
  }
  if (as_str(value) != nullptr && known_string_method(name)) return bound();
  if (as_list(value) != nullptr && known_list_method(name)) return bound();
  if (const auto* space = std::get_if<std::shared_ptr<Namespace>>(&value)) {
    for (const auto& [key, attribute] : (*space)->attributes) {
      if (key == name) return attribute;
    }
  }
  if (const auto* loop = std::get_if<std::shared_ptr<const Loop>>(&value))
    return loop_attribute(rt, **loop, *loop, name);
  return Undefined{name};
}

Value get_item(Runtime& rt, const Value& value, const Value& key) {
  rt.step();
  if (is<Undefined>(value))
    rt.fail(fmt::format("'{}' is undefined, it has no items", std::get<Undefined>(value).name));
  int64_t index = 0;
  if (as_integer(key, index)) {
    if (const List* list = as_list(value)) {
      const auto size = static_cast<int64_t>(list->items.size());
      if (index < 0) index += size;
      return index >= 0 && index < size ? list->items[index] : Value(Undefined{"list item"});
    }
    if (const Str* text = as_str(value)) {
      const int64_t size = length(rt, value);
      if (index < 0) index += size;
      if (index < 0 || index >= size) return Undefined{"string item"};
      const auto starts = starts_of(rt, text->text);
      return rt.string(text->part(starts[index], starts[index + 1]));
    }
    return Undefined{"item"};
  }
  if (const Str* name = as_str(key)) {
    if (const Dict* dict = as_dict(value)) {
      const Value* found = dict->find(name->text);
      if (found != nullptr) return *found;
    }
    return get_attribute(rt, value, name->text);
  }
  return Undefined{"item"};
}

Value get_slice(Runtime& rt, const Value& value, const Value& start, const Value& stop, const Value& step) {
  const Str* text = as_str(value);
  const List* list = as_list(value);
  if (text == nullptr && list == nullptr) rt.fail(fmt::format("a {} can't be sliced", type_name(value)));
  const auto absent = [](const Value& bound) { return is<None>(bound) || is<Undefined>(bound); };
  const int64_t by = absent(step) ? 1 : need_integer(rt, step, "a slice's step");
  if (by == 0) rt.fail("a slice's step is 0");
  const int64_t size = length(rt, value);
  const auto place = [&](const Value& bound, int64_t fallback) {
    if (absent(bound)) return fallback;
    int64_t at = need_integer(rt, bound, "a slice");
    if (at < 0) at = std::max<int64_t>(at, -size - 1) + size;
    return std::clamp<int64_t>(at, by < 0 ? -1 : 0, by < 0 ? size - 1 : size);
  };
  const int64_t from = place(start, by < 0 ? size - 1 : 0), to = place(stop, by < 0 ? -1 : size);
  // Steps beyond the ends visit one element; bounding them keeps the addition from overflowing.
  const int64_t stride = std::clamp<int64_t>(by, -size - 1, size + 1);
  if (text != nullptr) {
    const auto starts = starts_of(rt, text->text);
    if (stride == 1) return rt.string(from < to ? text->part(starts[from], starts[to]) : Str{});
    Str result;
    for (int64_t i = from; stride > 0 ? i < to : i > to; i += stride) {
      rt.step();
      result.append_part(*text, starts[i], starts[i + 1]);
    }
    return rt.string(std::move(result));
  }
  std::vector<Value> items;
  for (int64_t i = from; stride > 0 ? i < to : i > to; i += stride) items.push_back(list->items[i]);
  return rt.list(std::move(items), list->tuple);
}

Value call_method(Runtime& rt, const Value& self, const std::string& name, const Args& args) {
  if (const Str* text = as_str(self)) return string_method(rt, *text, name, args);
  if (const Dict* dict = as_dict(self)) {
    if (name == "get") {
      const auto a = args.bind(rt, name, {"key", "default"}, 1);
      const Str* key = as_str(*a[0]);
      const Value* found = key == nullptr ? nullptr : dict->find(key->text);
      return found != nullptr ? *found : a[1] != nullptr ? *a[1] : Value(None{});
    }
    if (name == "keys" || name == "values" || name == "items") {
      args.bind(rt, name, {});
      std::vector<Value> items;
      for (const auto& [key, value] : dict->items) {
        items.push_back(name == "keys" ? Value(key) : name == "values" ? value : rt.list({key, value}, true));
      }
      return rt.list(std::move(items));
    }
    rt.unsupported("mapping method '" + name + "'");
  }
  if (const List* list = as_list(self)) {
    if (name == "count" || name == "index") {
      const auto a = args.bind(rt, name, {"value"}, 1);
      int64_t count = 0;
      for (size_t i = 0; i < list->items.size(); ++i) {
        if (!equal(rt, list->items[i], *a[0])) continue;
        if (name == "index") return static_cast<int64_t>(i);
        ++count;
      }
      if (name == "index") rt.fail("index: the value is not in the list");
      return count;
    }
    rt.unsupported("list method '" + name + "' (lists of a template can't be changed)");
  }
  if (const auto* loop = std::get_if<std::shared_ptr<const Loop>>(&self)) {
    if (args.positional.empty()) rt.fail("loop.cycle needs values");
    return args.positional[(*loop)->index % args.positional.size()];
  }
  rt.fail(fmt::format("{} has no method '{}'", type_name(self), name));
}

}  // namespace duet::jinja
