// Fields: a JSON object read field by field, with types and ranges checked. What is absent or null is
// unset; what nobody asked for is refused by name at the end, so that no field of a request is ever
// ignored silently.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace duet {

class Fields {
 public:
  using Json = nlohmann::ordered_json;

  /// `where` stands before names in messages: "stream_options.". Throws ApiError when it is no object.
  explicit Fields(const Json& object, std::string where = "");

  /// nullptr: absent or null. The field counts as known.
  const Json* get(const std::string& name);
  std::optional<bool> boolean(const std::string& name);
  std::optional<int64_t> integer(const std::string& name, int64_t low = std::numeric_limits<int32_t>::min(),
                                 int64_t high = std::numeric_limits<int32_t>::max());
  std::optional<double> number(const std::string& name);
  std::optional<std::string> text(const std::string& name);
  /// A string, or an array of strings.
  std::vector<std::string> texts(const std::string& name);
  std::vector<int32_t> token_ids(const std::string& name);

  /// Fields whose value must be one of those that change nothing, else 400 "`why`".
  void refuse_unless(const std::string& name, const std::vector<Json>& harmless, const std::string& why);
  /// Known and without effect.
  void skip(const std::string& name);
  /// Throws ApiError naming the first field that nobody asked for.
  void finish(std::string_view endpoint);

  std::string path(const std::string& name) const { return where_ + name; }

 private:
  const Json& object_;
  std::string where_;
  std::set<std::string> known_;
};

/// The body of a request; throws ApiError(400) with the place where it is no JSON.
nlohmann::ordered_json parse_body(const std::string& body);
std::vector<int32_t> token_ids_of(const nlohmann::ordered_json& value, const std::string& field);

}  // namespace duet
