// Bytes of a connection to HttpRequests, one after the other, by http_parser. Called by Connection. What a
// peer may make us keep is bounded: headers by kMaxHeaderBytes, the body by the limit given.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "serve/http_message.h"

namespace duet {

class RequestParser {
 public:
  static constexpr size_t kMaxHeaderBytes = 64 * 1024;

  explicit RequestParser(size_t max_body_bytes);
  ~RequestParser();

  enum class State { kMore, kComplete, kFailed };
  /// Reads on. Stops behind a complete request (`used` bytes were taken): take() it before going on. Failed
  /// is final: status() and message() say why.
  State feed(std::string_view bytes, size_t& used);
  HttpRequest take();

  /// Something of a request has been read.
  bool begun() const;
  bool in_body() const;
  /// Once after the headers of a request whose sender waits for "100 Continue".
  bool take_expectation();
  int status() const;
  const std::string& message() const;

 private:
  struct State_;
  std::unique_ptr<State_> state_;
};

}  // namespace duet
