#include "serve/api_error.h"

#include <algorithm>
#include <array>
#include <new>
#include <string_view>

#include "base/error.h"

namespace duet {

void bad_field(const std::string& field, const std::string& message) {
  throw ApiError(400, message, field);
}

namespace {

// The engine's messages begin with the field they are about.
std::string field_of(std::string_view message) {
  static constexpr std::array<std::string_view, 16> kFields = {"temperature",
                                                               "top_p",
                                                               "top_k",
                                                               "min_p",
                                                               "repetition_penalty",
                                                               "presence_penalty",
                                                               "frequency_penalty",
                                                               "n",
                                                               "max_tokens",
                                                               "min_tokens",
                                                               "stop_token_ids",
                                                               "stop",
                                                               "logprobs",
                                                               "prompt_logprobs",
                                                               "logit_bias",
                                                               "prompt"};
  const std::string_view word = message.substr(0, message.find(' '));
  const auto found = std::find(kFields.begin(), kFields.end(), word);
  return found == kFields.end() ? "" : std::string(*found);
}

}  // namespace

ApiError api_error(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const ApiError& e) {
    return e;
  } catch (const Error& e) {
    switch (e.kind()) {
      case ErrorKind::kInvalidArgument:
      case ErrorKind::kUnsupported:
      case ErrorKind::kResourceExhausted:
      case ErrorKind::kNotFound: return {400, e.what(), field_of(e.what())};
      default: return {500, e.what()};
    }
  } catch (const std::bad_alloc&) {
    return {503, "out of memory"};
  } catch (const std::exception& e) {
    return {500, e.what()};
  } catch (...) {
    return {500, "unknown error"};
  }
}

}  // namespace duet
