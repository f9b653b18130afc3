// A blocking HTTP or HTTPS call: one connection each. Bodies arrive piece by piece, so that a stream's events
// can be timed or passed on. Used by the benchmark's requests and by the front of a server whose ranks are
// processes. Throws Error(kPeer).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace duet {

struct HttpUrl {
  // "http" or "https"; host: a name, an address, or the path of a Unix socket; path without a trailing slash,
  // may be empty.
  std::string scheme, host, path;
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
  /// Told the socket when it is connected, and -1 before it is closed: shutdown() of it from another thread
  /// in between ends the call.
  std::function<void(int fd)> on_socket{};
  /// Before the body: the status and the headers, names as sent.
  std::function<void(int status, const std::vector<std::pair<std::string, std::string>>& headers)> on_head{};
};
using HttpPieceSink = std::function<void(int status, std::string_view piece)>;

/// The status; `on_piece` has had every piece of the body as it came. Certificates are not verified: a
/// benchmark's server often has one of its own making.
int http_call(const HttpCall& call, const HttpPieceSink& on_piece);

}  // namespace duet
