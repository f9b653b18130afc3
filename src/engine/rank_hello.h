// What ranks tell each other before they work together: build, CPU level, settings, and how much
// each found room for. Rank exchanges it at start; different flags per process (an MPMD job, a
// variable set on one host) become a message here instead of collectives that never meet.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "engine/rank_group.h"

namespace duet {

inline constexpr size_t kHelloSettings = 64;

/// Travels as bytes, so: fixed size, no pointers.
struct Hello {
  char build[64] = {};
  uint32_t level = 0;
  uint32_t failed = 0;
  int64_t kv_blocks = 0;      // this rank has room for; the group uses the smallest
  int64_t max_positions = 0;  // the same
  std::array<int64_t, kHelloSettings> settings{};
  char text[1024] = {};  // of a failure
};

/// `build`: build id of the caller's; truncated to what fits.
Hello make_hello(const RankOptions& options, const ModelConfig& config, const char* build);

/// Empty, or which setting of `other` (rank `rank`) differs from `own` (rank `own_rank`), with both
/// values and how to mend it.
std::string settings_difference(const Hello& own, int own_rank, const Hello& other, int rank);

}  // namespace duet
