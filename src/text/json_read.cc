#include "text/json_read.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json_text.h"

namespace duet {

namespace {

// Real files nest 6 deep. The bound keeps recursive readers and destructors off the stack's end.
constexpr int kMaxDepth = 200;
// Ids index arrays; the largest published vocabulary has 2^18.
constexpr int64_t kMaxId = 1 << 24;

[[noreturn]] void wrong(const std::string& path, const char* key, const char* expected,
                        const nlohmann::json& got) {
  throw Error(ErrorKind::kCorrupt, fmt::format("tokenizer.json: {}.{} should be {}, found {}", path, key,
                                               expected, got.is_null() ? "nothing" : got.type_name()));
}

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::string& file) {
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      if (c == '"') quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxDepth) {
        throw Error(ErrorKind::kCorrupt, fmt::format("{}: nested deeper than {} levels", file, kMaxDepth));
      }
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  try {
    return read_json(text);
  } catch (const nlohmann::json::exception& e) {
    throw Error(ErrorKind::kCorrupt, fmt::format("{}: not valid JSON: {}", file, e.what()));
  }
}

void check_nesting(int depth, const std::string& path) {
  constexpr int kMostNesting = 16;
  if (depth > kMostNesting) {
    throw Error(ErrorKind::kCorrupt, fmt::format("tokenizer.json: {} is nested too deeply", path));
  }
}

const nlohmann::json& member(const nlohmann::json& object, const char* key) {
  static const nlohmann::json null;
  if (!object.is_object()) return null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

const nlohmann::json& read_array(const nlohmann::json& object, const char* key, const std::string& path) {
  const nlohmann::json& value = member(object, key);
  if (!value.is_array()) wrong(path, key, "an array", value);
  return value;
}

const nlohmann::json& read_object(const nlohmann::json& object, const char* key, const std::string& path) {
  const nlohmann::json& value = member(object, key);
  if (!value.is_object()) wrong(path, key, "an object", value);
  return value;
}

std::string read_string(const nlohmann::json& object, const char* key, const std::string& path) {
  const nlohmann::json& value = member(object, key);
  if (!value.is_string()) wrong(path, key, "a string", value);
  return value.get<std::string>();
}

bool read_bool(const nlohmann::json& object, const char* key, const std::string& path, bool fallback) {
  const nlohmann::json& value = member(object, key);
  if (value.is_null()) return fallback;
  if (!value.is_boolean()) wrong(path, key, "true or false", value);
  return value.get<bool>();
}

int read_id(const nlohmann::json& value, const std::string& path) {
  if (value.is_number_integer()) {
    const bool huge = value.is_number_unsigned() && value.get<uint64_t>() >= static_cast<uint64_t>(kMaxId);
    const int64_t id = huge ? -1 : value.get<int64_t>();
    if (id >= 0 && id < kMaxId) return static_cast<int>(id);
  }
  throw Error(ErrorKind::kCorrupt, fmt::format("tokenizer.json: {} should be a token id below {}, found {}",
                                               path, kMaxId, json_text(value)));
}

}  // namespace duet
