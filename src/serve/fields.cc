#include "serve/fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "serve/api_error.h"

namespace duet {

using Json = Fields::Json;

namespace {

constexpr int kMaxNesting = 64;

std::string shown(const Json& value) {
  std::string text = json_text(value);
  if (text.size() > 80) text = text.substr(0, 77) + "...";
  return text;
}

[[noreturn]] void wrong_type(const std::string& field, const Json& value, const char* expected) {
  bad_field(field, fmt::format("{} is {}, must be {}", field, shown(value), expected));
}

}  // namespace

Fields::Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
  if (object.is_object()) return;
  if (where_.empty()) throw ApiError(400, "the body must be a JSON object");
  const std::string name = where_.substr(0, where_.size() - 1);
  wrong_type(name, object, "an object");
}

const Json* Fields::get(const std::string& name) {
  known_.insert(name);
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

std::optional<bool> Fields::boolean(const std::string& name) {
  const Json* value = get(name);
  if (!value) return {};
  if (!value->is_boolean()) wrong_type(path(name), *value, "true or false");
  return value->get<bool>();
}

std::optional<int64_t> Fields::integer(const std::string& name, int64_t low, int64_t high) {
  const Json* value = get(name);
  if (!value) return {};
  // 8.0 is what some clients make of 8.
  const bool whole = value->is_number_integer() ||
                     (value->is_number_float() && std::floor(value->get<double>()) == value->get<double>());
  if (!whole) wrong_type(path(name), *value, "a whole number");
  const double size = value->get<double>();
  if (size < static_cast<double>(low) || size > static_cast<double>(high))
    bad_field(path(name), fmt::format("{} is {}, must be {} to {}", path(name), shown(*value), low, high));
  return value->is_number_float() ? static_cast<int64_t>(size) : value->get<int64_t>();
}

std::optional<double> Fields::number(const std::string& name) {
  const Json* value = get(name);
  if (!value) return {};
  if (!value->is_number()) wrong_type(path(name), *value, "a number");
  return value->get<double>();
}

std::optional<std::string> Fields::text(const std::string& name) {
  const Json* value = get(name);
  if (!value) return {};
  if (!value->is_string()) wrong_type(path(name), *value, "a string");
  return value->get<std::string>();
}

std::vector<std::string> Fields::texts(const std::string& name) {
  const Json* value = get(name);
  if (!value) return {};
  if (value->is_string()) return {value->get<std::string>()};
  if (!value->is_array()) wrong_type(path(name), *value, "a string or an array of strings");
  std::vector<std::string> texts;
  for (const Json& item : *value) {
    if (!item.is_string()) wrong_type(path(name), *value, "a string or an array of strings");
    texts.push_back(item.get<std::string>());
  }
  return texts;
}

std::vector<int32_t> token_ids_of(const Json& value, const std::string& field) {
  if (!value.is_array()) wrong_type(field, value, "an array of token ids");
  std::vector<int32_t> ids;
  ids.reserve(value.size());
  for (const Json& item : value) {
    if (!item.is_number_integer() || item.get<double>() < 0 || item.get<double>() > 2147483647.0)
      wrong_type(field, item, "token ids of 0 or more");
    ids.push_back(item.get<int32_t>());
  }
  return ids;
}

std::vector<int32_t> Fields::token_ids(const std::string& name) {
  const Json* value = get(name);
  return value ? token_ids_of(*value, path(name)) : std::vector<int32_t>{};
}

void Fields::refuse_unless(const std::string& name, const std::vector<Json>& harmless,
                           const std::string& why) {
  const Json* value = get(name);
  if (!value || std::find(harmless.begin(), harmless.end(), *value) != harmless.end()) return;
  bad_field(path(name), fmt::format("{} is {}, but {}", path(name), shown(*value), why));
}

void Fields::skip(const std::string& name) {
  known_.insert(name);
}

void Fields::finish(std::string_view endpoint) {
  for (const auto& [name, value] : object_.items()) {
    if (!known_.contains(name))
      bad_field(path(name), fmt::format("{} is not a field of {} that Duet supports (docs/serving.md lists "
                                        "them)",
                                        path(name), endpoint));
  }
}

Json parse_body(const std::string& body) {
  if (body.empty()) throw ApiError(400, "the body is empty; expected a JSON object");
  try {
    // Nesting is bounded here: messages and templates walk values by recursion.
    return Json::parse(body, [](int depth, Json::parse_event_t, Json&) {
      if (depth > kMaxNesting)
        throw ApiError(400, fmt::format("the body is nested deeper than {} levels", kMaxNesting));
      return true;
    });
  } catch (const Json::exception& error) {
    std::string text = error.what();
    if (text.size() > 300) text.resize(300);
    throw ApiError(400, fmt::format("the body is not JSON: {}", text));
  }
}

}  // namespace duet
