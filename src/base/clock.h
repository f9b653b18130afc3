// Time as everything in Duet measures it: steady, in nanoseconds.
#pragma once

#include <time.h>

#include <chrono>
#include <cstdint>

namespace duet {

/// Nanoseconds of the steady clock; one origin per machine boot, so ranks of one host compare.
inline int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// CPU time of the calling thread.
inline int64_t thread_cpu_ns() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

}  // namespace duet
