// What a user typed wrong: exit code 2. Thrown by the parts that read flags and prompts; run_cli
// turns it into one line on stderr. Everything else that fails is a duet::Error (exit code 1).
#pragma once

#include <stdexcept>

namespace duet {

class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace duet
