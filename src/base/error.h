// One exception type for everything a user, a file, a request or a peer can get wrong.
// Thrown with a text that says what, where and how to mend it; only a programmer's broken
// invariant aborts (DUET_CHECK). The kind maps to exit codes of the CLI and HTTP status codes.
#pragma once

#include <stdexcept>
#include <string>

namespace duet {

enum class ErrorKind {
  kInvalidArgument,    // a flag, a request field, a prompt
  kNotFound,           // a file, a tensor, a model
  kCorrupt,            // a file whose bytes contradict its format or its config
  kUnsupported,        // a feature that is not there; the text names it
  kResourceExhausted,  // memory, blocks, queue; the text says what would fit
  kPeer,               // another rank failed or disagreed
  kInternal,
};

/// "invalid argument", "not found", … for messages and JSON.
const char* to_string(ErrorKind kind);

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

namespace detail {
[[noreturn]] void check_failed(const char* condition, const char* file, int line);
}  // namespace detail

}  // namespace duet

/// A programmer's invariant: prints condition and place, then aborts. Never for input.
#define DUET_CHECK(condition) \
  ((condition) ? (void)0 : ::duet::detail::check_failed(#condition, __FILE__, __LINE__))
