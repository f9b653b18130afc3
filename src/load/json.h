// JSON files as this room reads them; internal to it (nlohmann's header is heavy). Every error
// names file, field, found and expected value.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace duet {

enum class JsonKeys { kLastWins, kUnique };

/// Throws Error(kCorrupt) with file and position; kUnique refuses an object that has a key twice.
nlohmann::json parse_json(std::string_view text, const std::string& file_name, JsonKeys keys);

/// The whole file; kNotFound when it is missing, kCorrupt above `max_bytes`.
std::string read_text_file(const std::string& path, uint64_t max_bytes);

/// A value for a message: scalars as written (long ones cut), others by their type.
std::string describe(const nlohmann::json& value);
/// "name" in quotes, cut when a stranger made it very long.
std::string show_name(std::string_view name);

/// Typed access to the fields of one object. null counts as absent.
class JsonFields {
 public:
  /// `prefix` names the object in messages: "" or "rope_scaling.".
  JsonFields(const nlohmann::json& object, std::string file, std::string prefix);

  const nlohmann::json* find(const char* name) const;
  bool has(const char* name) const { return find(name) != nullptr; }
  /// Also true for null.
  bool names(const char* name) const { return object_.is_object() && object_.contains(name); }

  int64_t integer(const char* name, int64_t low, int64_t high) const;  // required
  int64_t integer_or(const char* name, int64_t absent, int64_t low, int64_t high) const;
  /// Finite and in [low, high].
  double number(const char* name, double low, double high) const;  // required
  double number_or(const char* name, double absent, double low, double high) const;
  bool boolean_or(const char* name, bool absent) const;
  std::string text_or(const char* name, const std::string& absent) const;
  /// A token id, or a list of them (its size unlimited); negative ones mean "none".
  std::vector<int32_t> token_ids(const char* name) const;
  /// The first of token_ids().
  std::optional<int32_t> token_id(const char* name) const;

  /// Throws kCorrupt: `<file>: field "<name>" is <found>; expected <expected>`.
  [[noreturn]] void fail(const char* name, const std::string& expected) const;
  /// Throws kUnsupported: `<file>: field "<name>" is <found>: <why>`.
  [[noreturn]] void unsupported(const char* name, const std::string& why) const;

 private:
  const nlohmann::json& object_;
  std::string file_;
  std::string prefix_;
};

}  // namespace duet
