// An HTTP request as handlers see it, and the few words of the protocol that the server needs. Made by
// RequestParser, read by the API. Always holds: header names are lower case.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace duet {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

constexpr const char* kJsonType = "application/json";

struct HttpRequest {
  std::string method;  // "POST"
  std::string path;    // decoded, without the query: "/v1/models"
  std::string query;   // behind the '?', as sent
  HttpHeaders headers;
  std::string body;
  bool keep_alive = true;

  /// The first header of that (lower-case) name; nullptr: none.
  const std::string* header(std::string_view name) const;
};

/// "Not Found"; "" for numbers that the server does not send.
const char* http_reason(int status);

/// %41 and the like decoded; what is no escape stays as it is.
std::string decode_percent(std::string_view text);

/// Value of `name` in "a=1&b=2", decoded; "" when absent.
std::string query_value(std::string_view query, std::string_view name);

/// OpenAI's error object as text; `param` empty: null.
std::string error_body(int status, std::string_view message, std::string_view type = "",
                       std::string_view param = "");

}  // namespace duet
