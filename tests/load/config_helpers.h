// What the tests of config.json share.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "base/json_text.h"
#include "helpers.h"
#include "load/config.h"

namespace duet {

inline ModelConfig parse(const nlohmann::json& j) {
  return parse_config(json_text(j), "dir/config.json");
}

/// Expects that parsing fails with an Error of `kind` which names the file, the field and the pieces.
template <typename... Pieces>
void expect_config_error(ErrorKind kind, const nlohmann::json& j, const char* field,
                         const Pieces&... pieces) {
  SCOPED_TRACE(field);
  expect_error(
      kind, [&] { parse(j); }, "dir/config.json", "\"" + std::string(field) + "\"", pieces...);
}

}  // namespace duet
