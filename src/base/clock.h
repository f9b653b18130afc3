// Time as everything in Duet measures it: steady, in nanoseconds.
#pragma once

#include <chrono>
#include <cstdint>

namespace duet {

/// Nanoseconds of the steady clock; one origin per machine boot, so ranks of one host compare.
inline int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace duet
