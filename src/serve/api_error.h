// What a request got wrong, as the API answers it: status, OpenAI's type and the field that is to blame.
#pragma once

#include <exception>
#include <stdexcept>
#include <string>

namespace duet {

class ApiError : public std::runtime_error {
 public:
  ApiError(int status, const std::string& message, std::string param = "", std::string type = "")
      : std::runtime_error(message), status_(status), param_(std::move(param)), type_(std::move(type)) {}
  int status() const { return status_; }
  const std::string& param() const { return param_; }
  const std::string& type() const { return type_; }
  int retry_after = 0;  // seconds; 0: no such header

 private:
  int status_;
  std::string param_, type_;
};

/// 400 naming the field.
[[noreturn]] void bad_field(const std::string& field, const std::string& message);
/// An engine's error as the API's: what the request got wrong is a 400 (naming the field that the text
/// begins with), everything else a 500.
ApiError api_error(const std::exception_ptr& error);

}  // namespace duet
