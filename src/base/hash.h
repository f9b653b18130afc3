// FNV-1a, 64 bits (Fowler, Noll, Vo): names as seeds, keys as file names, programs compared over ranks. The
// same on every machine; no protection against anybody who wants two texts to agree.
#pragma once

#include <cstdint>
#include <string_view>

namespace duet {

class Fnv1a {
 public:
  void byte(uint8_t b) { state_ = (state_ ^ b) * 0x100000001b3u; }
  void bytes(std::string_view text) {
    for (const char c : text) byte(static_cast<uint8_t>(c));
  }
  uint64_t value() const { return state_; }

 private:
  uint64_t state_ = 0xcbf29ce484222325u;
};

}  // namespace duet
