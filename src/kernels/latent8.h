// A row of the int8 latent cache (PagedCache with dtype i8): what 8 bits, and 13 for the rotated part, keep
// of a token. Values of a group share a scale, value = integer · scale. Written by write_latent, read by
// mla*.cc.
#pragma once

#include <cstdint>

namespace duet {

struct Latent8Row {
  static constexpr int64_t kGroup = 128;  // latent values that share a scale
  static constexpr int kMost = 127;       // the largest magnitude of an integer
  // The rotated part has one scale and int16. Its products are with integers of the same size: 128 of them
  // stay within 32 bits.
  static constexpr int kRopeMost = 4095;

  int64_t lora, rope;

  constexpr int64_t groups() const { return (lora + kGroup - 1) / kGroup; }
  constexpr int64_t scales() const { return groups() + 1; }  // f32 at the row's begin; the last is rope's
  constexpr int64_t rope_at() const { return scales() * 4; }
  constexpr int64_t latent_at() const { return rope_at() + 2 * rope; }
  constexpr int64_t bytes() const { return (latent_at() + lora + 3) / 4 * 4; }
};

}  // namespace duet
