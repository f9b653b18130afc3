#include "text/jinja/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "text/utf8.h"

namespace duet::jinja {

namespace {

constexpr size_t kLinearSearch = 8;  // dicts of messages are smaller than this

}  // namespace

void Str::append_part(const Str& other, size_t begin, size_t end) {
  const size_t shift = text.size();
  text.append(other.text, begin, end - begin);
  // Found by bisection: cutting a string into many parts must not look at all its spans each time.
  auto span = std::lower_bound(other.literal.begin(), other.literal.end(), begin,
                               [](const TextSpan& s, size_t at) { return s.end <= at; });
  for (; span != other.literal.end() && span->begin < end; ++span) {
    const size_t from = std::max(span->begin, begin), to = std::min(span->end, end);
    const TextSpan moved{from - begin + shift, to - begin + shift};
    if (!literal.empty() && literal.back().end == moved.begin) {
      literal.back().end = moved.end;
    } else {
      literal.push_back(moved);
    }
  }
}

void Str::mark_all() {
  literal.clear();
  if (!text.empty()) literal.push_back({0, text.size()});
}

Str Str::part(size_t begin, size_t end) const {
  Str result;
  result.append_part(*this, begin, end);
  return result;
}

const Value* Dict::find(std::string_view key) const {
  if (items.size() > kLinearSearch) {
    const auto found = index.find(key);
    return found == index.end() ? nullptr : &items[found->second].second;
  }
  for (const auto& [name, value] : items) {
    if (name->text == key) return &value;
  }
  return nullptr;
}

void Dict::set(StrPtr key, Value value) {
  depth = std::max(depth, 1 + depth_of(value));
  if (const Value* old = find(key->text)) {
    *const_cast<Value*>(old) = std::move(value);
    return;
  }
  items.emplace_back(std::move(key), std::move(value));
  if (items.size() == kLinearSearch + 1) {
    for (size_t i = 0; i < items.size(); ++i) index.emplace(items[i].first->text, i);
  } else if (items.size() > kLinearSearch) {
    index.emplace(items.back().first->text, items.size() - 1);
  }
}

void Runtime::step(int64_t count) {
  left.steps -= count;
  if (left.steps < 0) fail("too many steps; the template loops too long", ErrorKind::kResourceExhausted);
}

void Runtime::use_bytes(size_t bytes) {
  if (bytes > static_cast<size_t>(left.bytes)) {
    fail("the template builds too much text", ErrorKind::kResourceExhausted);
  }
  left.bytes -= static_cast<int64_t>(bytes);
}

void Runtime::fail(const std::string& text, ErrorKind kind) const {
  throw Error(kind, fmt::format("chat template, line {}: {}", line, text));
}

void Runtime::unsupported(const std::string& what) const {
  fail(what + " is not supported", ErrorKind::kUnsupported);
}

Value Runtime::string(Str text) {
  use_bytes(text.text.size() + text.literal.size() * sizeof(TextSpan) + 32);
  return std::make_shared<const Str>(std::move(text));
}

Value Runtime::list(std::vector<Value> items, bool tuple) {
  use_bytes(items.size() * sizeof(Value) + 32);
  step(static_cast<int64_t>(items.size()));
  auto result = std::make_shared<List>();
  for (const Value& item : items) result->depth = std::max(result->depth, 1 + depth_of(item));
  if (result->depth > kMaxValueDepth) fail("lists are nested too deeply", ErrorKind::kResourceExhausted);
  result->items = std::move(items);
  result->tuple = tuple;
  return std::shared_ptr<const List>(std::move(result));
}

Value Runtime::dict(Dict dict) {
  use_bytes(dict.items.size() * 4 * sizeof(Value) + 32);
  step(static_cast<int64_t>(dict.items.size()));
  if (dict.depth > kMaxValueDepth) fail("mappings are nested too deeply", ErrorKind::kResourceExhausted);
  // The views of `index` point into the keys' own memory, so the move keeps them.
  return std::make_shared<const Dict>(std::move(dict));
}

int depth_of(const Value& value) {
  if (const List* list = as_list(value)) return list->depth;
  if (const Dict* dict = as_dict(value)) return dict->depth;
  if (const auto* function = std::get_if<std::shared_ptr<const Function>>(&value))
    return 1 + depth_of((*function)->self);
  if (const auto* loop = std::get_if<std::shared_ptr<const Loop>>(&value)) return 1 + (*loop)->items->depth;
  if (is<std::shared_ptr<Namespace>>(value)) return kMaxValueDepth;  // goes into no list: no cycles
  return 0;
}

bool as_integer(const Value& value, int64_t& number) {
  if (const auto* flag = std::get_if<bool>(&value)) {
    number = *flag ? 1 : 0;
    return true;
  }
  if (const auto* integer = std::get_if<int64_t>(&value)) {
    number = *integer;
    return true;
  }
  return false;
}

bool as_number(const Value& value, double& number) {
  int64_t integer = 0;
  if (as_integer(value, integer)) {
    number = static_cast<double>(integer);
    return true;
  }
  if (const auto* real = std::get_if<double>(&value)) {
    number = *real;
    return true;
  }
  return false;
}

const char* type_name(const Value& value) {
  static constexpr const char* kNames[] = {"undefined", "none", "bool",      "int",  "float",   "string",
                                           "list",      "dict", "namespace", "loop", "function"};
  return kNames[value.index()];
}

bool truthy(const Value& value) {
  double number = 0;
  if (as_number(value, number)) return number != 0;
  if (const Str* text = as_str(value)) return !text->text.empty();
  if (const List* list = as_list(value)) return !list->items.empty();
  if (const Dict* dict = as_dict(value)) return !dict->items.empty();
  return !is<Undefined>(value) && !is<None>(value);
}

bool equal(Runtime& rt, const Value& a, const Value& b) {
  rt.step();
  int64_t ia = 0, ib = 0;
  if (as_integer(a, ia) && as_integer(b, ib)) return ia == ib;
  double na = 0, nb = 0;
  if (as_number(a, na)) return as_number(b, nb) && na == nb;
  if (a.index() != b.index()) return false;
  if (const Str* text = as_str(a)) {
    rt.step(static_cast<int64_t>(text->text.size() / 64));
    return text->text == as_str(b)->text;
  }
  if (const List* list = as_list(a)) {
    const List* other = as_list(b);
    if (list->tuple != other->tuple || list->items.size() != other->items.size()) return false;
    for (size_t i = 0; i < list->items.size(); ++i) {
      if (!equal(rt, list->items[i], other->items[i])) return false;
    }
    return true;
  }
  if (const Dict* dict = as_dict(a)) {
    const Dict* other = as_dict(b);
    if (dict->items.size() != other->items.size()) return false;
    for (const auto& [key, value] : dict->items) {
      const Value* found = other->find(key->text);
      if (found == nullptr || !equal(rt, value, *found)) return false;
    }
    return true;
  }
  if (is<Undefined>(a) || is<None>(a)) return true;
  if (const auto* space = std::get_if<std::shared_ptr<Namespace>>(&a))
    return *space == std::get<std::shared_ptr<Namespace>>(b);
  return false;
}

int compare(Runtime& rt, const Value& a, const Value& b) {
  rt.step();
  int64_t ia = 0, ib = 0;
  if (as_integer(a, ia) && as_integer(b, ib)) return ia < ib ? -1 : ia > ib;
  double na = 0, nb = 0;
  if (as_number(a, na) && as_number(b, nb)) return na < nb ? -1 : na > nb;
  const Str *sa = as_str(a), *sb = as_str(b);
  if (sa != nullptr && sb != nullptr) return sa->text.compare(sb->text);  // UTF-8 sorts as its code points
  const List *la = as_list(a), *lb = as_list(b);
  if (la != nullptr && lb != nullptr) {
    for (size_t i = 0; i < std::min(la->items.size(), lb->items.size()); ++i) {
      if (!equal(rt, la->items[i], lb->items[i])) return compare(rt, la->items[i], lb->items[i]);
    }
    return la->items.size() < lb->items.size() ? -1 : la->items.size() > lb->items.size();
  }
  rt.fail(fmt::format("{} and {} can't be ordered", type_name(a), type_name(b)));
}

bool contains(Runtime& rt, const Value& container, const Value& needle) {
  if (const Str* text = as_str(container)) {
    const Str* part = as_str(needle);
    if (part == nullptr) rt.fail(fmt::format("'in <string>' needs a string, found {}", type_name(needle)));
    rt.step(static_cast<int64_t>(text->text.size() / 64));
    return text->text.find(part->text) != std::string::npos;
  }
  if (const List* list = as_list(container)) {
    for (const Value& item : list->items) {
      if (equal(rt, item, needle)) return true;
    }
    return false;
  }
  if (const Dict* dict = as_dict(container)) {
    const Str* key = as_str(needle);
    return key != nullptr && dict->find(key->text) != nullptr;
  }
  if (is<Undefined>(container)) return false;
  rt.fail(fmt::format("'in' needs a string, list or mapping, found {}", type_name(container)));
}

std::shared_ptr<const List> iterate(Runtime& rt, const Value& value) {
  if (const auto* list = std::get_if<std::shared_ptr<const List>>(&value)) return *list;
  std::vector<Value> items;
  if (const Dict* dict = as_dict(value)) {
    for (const auto& entry : dict->items) items.emplace_back(entry.first);
  } else if (const Str* text = as_str(value)) {
    for (size_t at = 0; at < text->text.size();) {
      const size_t end = at + utf8_length(text->text[at]);
      rt.step();
      items.push_back(rt.string(text->part(at, end)));
      at = end;
    }
  } else if (!is<Undefined>(value)) {
    rt.fail(fmt::format("{} is not iterable", type_name(value)));
  }
  return std::get<std::shared_ptr<const List>>(rt.list(std::move(items)));
}

int64_t length(Runtime& rt, const Value& value) {
  if (const List* list = as_list(value)) return static_cast<int64_t>(list->items.size());
  if (const Dict* dict = as_dict(value)) return static_cast<int64_t>(dict->items.size());
  if (is<Undefined>(value)) return 0;
  if (const Str* text = as_str(value)) {
    rt.step(static_cast<int64_t>(text->text.size() / 64));
    return static_cast<int64_t>(
        std::count_if(text->text.begin(), text->text.end(), [](char c) { return !is_continuation(c); }));
  }
  return -1;
}

}  // namespace duet::jinja
