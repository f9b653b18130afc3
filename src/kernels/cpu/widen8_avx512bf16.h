// fp8 weights as bf16, exactly: e4m3 has fewer digits. A weight's low seven bits look up both bytes of its
// magnitude in tables of 128 entries (vpermi2b: two registers each, and it reads seven bits); a quad, 16
// columns × 4 k, becomes two registers of pairs. For the files of this level: everything here has internal
// linkage.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace duet::gemm_detail {
namespace {

constexpr float magnitude(int code) {
  float v = static_cast<float>(code < 8 ? code : 8 + code % 8) * 0x1p-9f;
  for (int e = 1; e < code / 8; ++e) v *= 2.0f;
  return v;
}

struct Bytes {
  alignas(64) uint8_t low[128];
  alignas(64) uint8_t high[128];
};
constexpr Bytes make_bytes() {
  Bytes b{};
  for (int code = 0; code < 128; ++code) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, magnitude(code));
    b.low[code] = static_cast<uint8_t>(bits >> 16);
    b.high[code] = static_cast<uint8_t>(bits >> 24);
  }
  return b;
}
constexpr Bytes kBytes = make_bytes();

struct Tables {
  __m512i low[2], high[2];
  [[gnu::always_inline]] Tables() {
    low[0] = _mm512_load_si512(kBytes.low);
    low[1] = _mm512_load_si512(kBytes.low + 64);
    high[0] = _mm512_load_si512(kBytes.high);
    high[1] = _mm512_load_si512(kBytes.high + 64);
  }
  /// first: k 0 and 1 of each column; second: k 2 and 3.
  [[gnu::always_inline]] void widen(const std::byte* quad, __m512i& first, __m512i& second) const {
    const __m512i codes = _mm512_loadu_si512(quad);
    const __m512i bottom = _mm512_permutex2var_epi8(low[0], codes, low[1]);
    const __m512i above = _mm512_permutex2var_epi8(high[0], codes, high[1]);
    // above | (codes & 0x80)
    const __m512i top =
        _mm512_ternarylogic_epi32(above, codes, _mm512_set1_epi8(static_cast<char>(0x80)), 0xf8);
    first = _mm512_unpacklo_epi8(bottom, top);
    second = _mm512_unpackhi_epi8(bottom, top);
  }
};

}  // namespace
}  // namespace duet::gemm_detail
