// Reading fields of tokenizer.json and tokenizer_config.json with errors that carry the JSON path.
// Used by the loaders of this room only.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace duet {

/// Parses a whole document; Error(kCorrupt) names `file` and the byte. Depth is bounded.
nlohmann::json parse_json(std::string_view text, const std::string& file);

/// Fields of `object`; missing or of another type: Error(kCorrupt) naming "tokenizer.json: path.key".
const nlohmann::json& read_array(const nlohmann::json& object, const char* key, const std::string& path);
const nlohmann::json& read_object(const nlohmann::json& object, const char* key, const std::string& path);
std::string read_string(const nlohmann::json& object, const char* key, const std::string& path);
/// Absent or null gives `fallback`.
bool read_bool(const nlohmann::json& object, const char* key, const std::string& path, bool fallback);
/// A token id: an integer in [0, 2^24).
int read_id(const nlohmann::json& value, const std::string& path);
/// Error(kCorrupt) where parts of a description are nested in each other too deeply to be meant.
void check_nesting(int depth, const std::string& path);
/// The member, or a shared null when absent or when `object` is no object.
const nlohmann::json& member(const nlohmann::json& object, const char* key);

}  // namespace duet
