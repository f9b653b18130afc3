// A blocking HTTP or HTTPS call, for the benchmark's requests: one connection each. Bodies arrive piece
// by piece, so that a stream's events can be timed. Throws Error(kPeer).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace duet {

struct HttpUrl {
  std::string scheme, host, path;  // "http" or "https"; path without a trailing slash, may be empty
  int port = 0;
};
/// Throws Error(kInvalidArgument) for what is no http(s) URL.
HttpUrl parse_url(const std::string& url);

struct HttpCall {
  HttpUrl server;
  std::string method = "GET";
  std::string path;     // appended to the server's
  std::string headers;  // whole lines, each with its CRLF
  std::string body;
  int64_t patience_seconds = 600;  // no wait for bytes is longer
};
using HttpPieceSink = std::function<void(int status, std::string_view piece)>;

/// The status; `on_piece` has had every piece of the body as it came. Certificates are not verified: a
/// benchmark's server often has one of its own making.
int http_call(const HttpCall& call, const HttpPieceSink& on_piece);

}  // namespace duet
