#include "load/json.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/json_text.h"

namespace duet {

namespace {
using nlohmann::json;

constexpr size_t kMaxShownBytes = 120;

std::string cut(std::string text) {
  if (text.size() <= kMaxShownBytes) return text;
  size_t end = kMaxShownBytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0u) == 0x80u)
    --end;  // not inside a character
  return text.substr(0, end) + "…";
}

std::string range_text(const char* what, double low, double high) {
  return fmt::format("{} in [{}, {}]", what, low, high);
}

}  // namespace

std::string show_name(std::string_view name) {
  std::string shown;
  for (const char c : name.substr(0, 2 * kMaxShownBytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {  // a NUL would end the message, an escape would reach the terminal
      shown += fmt::format("\\x{:02x}", byte);
    } else {
      shown += c;
    }
  }
  return "\"" + cut(std::move(shown)) + "\"";
}

std::string describe(const json& value) {
  if (value.is_object() || value.is_array()) {
    return fmt::format("{} of {} {}", value.is_object() ? "an object" : "a list", value.size(),
                       value.size() == 1 ? "entry" : "entries");
  }
  if (value.is_discarded() || value.is_binary()) return value.type_name();
  return cut(json_text(value));
}

json parse_json(std::string_view text, const std::string& file_name, JsonKeys keys) {
  std::vector<std::unordered_set<std::string>> open_objects;
  json::parser_callback_t callback;
  if (keys == JsonKeys::kUnique) {
    callback = [&](int, json::parse_event_t event, json& parsed) {
      if (event == json::parse_event_t::object_start) {
        open_objects.emplace_back();
      } else if (event == json::parse_event_t::object_end) {
        open_objects.pop_back();
      } else if (event == json::parse_event_t::key) {
        const std::string& key = parsed.get_ref<const std::string&>();
        if (!open_objects.back().insert(key).second) {
          throw Error(ErrorKind::kCorrupt, fmt::format("{}: the name {} appears twice in one JSON object",
                                                       file_name, show_name(key)));
        }
      }
      return true;
    };
  }
  try {
    return json::parse(text.begin(), text.end(), callback);
  } catch (const json::exception& e) {
    throw Error(ErrorKind::kCorrupt, fmt::format("{}: not valid JSON: {}", file_name, cut(e.what())));
  }
}

std::string read_text_file(const std::string& path, uint64_t max_bytes) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) {
    throw Error(ErrorKind::kNotFound, fmt::format("{}: {}", path, std::strerror(errno)));
  }
  if (!S_ISREG(info.st_mode)) throw Error(ErrorKind::kCorrupt, path + ": not a regular file");
  if (static_cast<uint64_t>(info.st_size) > max_bytes) {
    throw Error(ErrorKind::kCorrupt,
                fmt::format("{}: {} bytes; expected at most {}", path, info.st_size, max_bytes));
  }
  std::ifstream in(path, std::ios::binary);
  std::string text(static_cast<size_t>(info.st_size), '\0');
  if (!in || !in.read(text.data(), info.st_size)) {
    throw Error(ErrorKind::kNotFound, fmt::format("{}: cannot be read: {}", path, std::strerror(errno)));
  }
  return text;
}

JsonFields::JsonFields(const json& object, std::string file, std::string prefix)
    : object_(object), file_(std::move(file)), prefix_(std::move(prefix)) {
  if (!object_.is_object()) {
    const std::string what =
        prefix_.empty() ? "the JSON" : "field " + show_name(prefix_.substr(0, prefix_.size() - 1));
    throw Error(ErrorKind::kCorrupt,
                fmt::format("{}: {} is {}; expected an object", file_, what, describe(object_)));
  }
}

const json* JsonFields::find(const char* name) const {
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

void JsonFields::fail(const char* name, const std::string& expected) const {
  const json* value = find(name);
  throw Error(ErrorKind::kCorrupt, fmt::format("{}: field \"{}{}\" is {}; expected {}", file_, prefix_, name,
                                               value ? describe(*value) : "missing", expected));
}

void JsonFields::unsupported(const char* name, const std::string& why) const {
  const json* value = find(name);
  throw Error(ErrorKind::kUnsupported, fmt::format("{}: field \"{}{}\" is {}: {}", file_, prefix_, name,
                                                   value ? describe(*value) : "missing", why));
}

int64_t JsonFields::integer(const char* name, int64_t low, int64_t high) const {
  const std::string expected = fmt::format("an integer in [{}, {}]", low, high);
  const json* value = find(name);
  if (!value || !value->is_number_integer()) fail(name, expected);
  if (value->is_number_unsigned() &&
      value->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    fail(name, expected);
  }
  const int64_t number = value->get<int64_t>();
  if (number < low || number > high) fail(name, expected);
  return number;
}

int64_t JsonFields::integer_or(const char* name, int64_t absent, int64_t low, int64_t high) const {
  return has(name) ? integer(name, low, high) : absent;
}

double JsonFields::number(const char* name, double low, double high) const {
  const json* value = find(name);
  if (!value || !value->is_number()) fail(name, range_text("a number", low, high));
  const double number = value->get<double>();
  if (!std::isfinite(number) || number < low || number > high) fail(name, range_text("a number", low, high));
  return number;
}

double JsonFields::number_or(const char* name, double absent, double low, double high) const {
  return has(name) ? number(name, low, high) : absent;
}

bool JsonFields::boolean_or(const char* name, bool absent) const {
  const json* value = find(name);
  if (!value) return absent;
  if (!value->is_boolean()) fail(name, "true or false");
  return value->get<bool>();
}

std::string JsonFields::text_or(const char* name, const std::string& absent) const {
  const json* value = find(name);
  if (!value) return absent;
  if (!value->is_string()) fail(name, "a string");
  return value->get<std::string>();
}

std::vector<int32_t> JsonFields::token_ids(const char* name) const {
  const json* value = find(name);
  std::vector<int32_t> ids;
  if (!value) return ids;
  const auto add = [&](const json& item) {
    constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
    const bool huge = item.is_number_unsigned() && item.get<uint64_t>() > static_cast<uint64_t>(kMax);
    if (!item.is_number_integer() || huge) fail(name, "a token id below 2^31 or a list of them");
    const int64_t id = item.get<int64_t>();
    if (id >= 0) ids.push_back(static_cast<int32_t>(id));
  };
  if (value->is_array()) {
    for (const json& item : *value) add(item);
  } else {
    add(*value);
  }
  return ids;
}

std::optional<int32_t> JsonFields::token_id(const char* name) const {
  const std::vector<int32_t> ids = token_ids(name);
  return ids.empty() ? std::nullopt : std::optional<int32_t>(ids.front());
}

}  // namespace duet
