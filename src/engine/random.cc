#include "engine/random.h"

namespace duet {

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> c, std::array<uint32_t, 2> key) {
  constexpr uint64_t kMul0 = 0xD2511F53u, kMul1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = kMul0 * c[0], p1 = kMul1 * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(p0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return c;
}

namespace {

// The last counter word keeps the two uses apart.
enum class Use : uint32_t { kToken = 0, kSeed = 1 };

std::array<uint32_t, 4> draw(uint64_t seed, uint64_t index, uint32_t sub, Use use) {
  return philox4x32(
      {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), sub, static_cast<uint32_t>(use)},
      {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
}

uint64_t first_word(const std::array<uint32_t, 4>& r) {
  return static_cast<uint64_t>(r[1]) << 32 | r[0];
}

}  // namespace

double uniform_at(uint64_t seed, uint32_t sample, uint64_t position) {
  return static_cast<double>(first_word(draw(seed, position, sample, Use::kToken)) >> 11) * 0x1.0p-53;
}

uint64_t derive_seed(uint64_t engine_seed, uint64_t request_index) {
  return first_word(draw(engine_seed, request_index, 0, Use::kSeed));
}

}  // namespace duet
