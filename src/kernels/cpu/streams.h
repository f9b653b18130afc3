// Memory that a product asks for while it computes. Included by files that are compiled for one instruction
// set each, so its function is internal to every one of them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace duet {

/// What a product brings to the second-level cache meanwhile: line by line from eight places in turn. A
/// core's own prefetcher follows each of them; from one place after the other it would start anew each time.
struct Streams {
  static constexpr int64_t kPlaces = 8;
  const std::byte* const* places = nullptr;
  int64_t offset = 0;  // bytes from each place's begin
  int64_t lines = 0;   // of all places together, spread over the product
};

/// Asks for lines [from, to). Unsigned, or half of its instructions would be for negative numbers: a float32
/// product asks for three lines in every chain, and was 4 % slower for it.
[[maybe_unused]] __attribute__((always_inline)) static inline void bring(const Streams& ahead, int64_t from,
                                                                         int64_t to) {
  constexpr uint64_t kPlaces = Streams::kPlaces;
  for (auto line = static_cast<uint64_t>(from); line < static_cast<uint64_t>(to); ++line) {
    const std::byte* place = ahead.places[line % kPlaces] + ahead.offset;
    __builtin_prefetch(place + line / kPlaces * 64, 0, 2);
  }
}

}  // namespace duet
