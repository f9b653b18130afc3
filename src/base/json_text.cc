#include "base/json_text.h"

#include <istream>
#include <nlohmann/json.hpp>

namespace duet {

using nlohmann::json;
using nlohmann::ordered_json;

json read_json(std::string_view text) {
  return json::parse(text);
}
json read_json(std::istream&& text) {
  return json::parse(text);
}
ordered_json read_ordered_json(std::string_view text) {
  return ordered_json::parse(text);
}
ordered_json read_ordered_json(std::istream&& text) {
  return ordered_json::parse(text);
}

json try_json(std::string_view text) {
  return json::parse(text, nullptr, false);
}
json try_json(std::istream&& text) {
  return json::parse(text, nullptr, false);
}
ordered_json try_ordered_json(std::string_view text) {
  return ordered_json::parse(text, nullptr, false);
}

std::string json_text(const json& value, int indent, bool ascii) {
  return value.dump(indent, ' ', ascii, json::error_handler_t::replace);
}
std::string json_text(const ordered_json& value, int indent, bool ascii) {
  return value.dump(indent, ' ', ascii, ordered_json::error_handler_t::replace);
}

}  // namespace duet
