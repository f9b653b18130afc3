// JSON from text and back. nlohmann's reader and writer are templates that take seconds to compile in every
// file that names them (ten with sanitizers), so they are compiled in one.
#pragma once

#include <iosfwd>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace duet {

/// Throws nlohmann::json::parse_error, which names the position.
nlohmann::json read_json(std::string_view text);
nlohmann::json read_json(std::istream&& text);
/// Keeps the order of the members.
nlohmann::ordered_json read_ordered_json(std::string_view text);
nlohmann::ordered_json read_ordered_json(std::istream&& text);

/// is_discarded() where the text is not JSON.
nlohmann::json try_json(std::string_view text);
nlohmann::json try_json(std::istream&& text);
nlohmann::ordered_json try_ordered_json(std::string_view text);

/// On one line, or with members on lines of their own from indent 0 on. Bytes that are not UTF-8 become
/// U+FFFD; `ascii` escapes what is above 0x7f.
std::string json_text(const nlohmann::json& value, int indent = -1, bool ascii = false);
std::string json_text(const nlohmann::ordered_json& value, int indent = -1, bool ascii = false);

}  // namespace duet
