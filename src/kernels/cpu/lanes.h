// Sixteen f32 lanes, written once and compiled at each level: one zmm, two ymm or four xmm
// registers. Included only by row_kernels_body.h; everything here has internal linkage, because a
// shared inline function compiled with AVX-512 must never be what another file ends up calling.
// Element j of a row always meets lane j % 16, so results do not depend on the register width.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between inlined functions only

#define DUET_LANE [[maybe_unused]] static inline __attribute__((always_inline))

namespace duet {
namespace {

#if defined(__AVX512F__)
#define DUET_PART_BYTES 64
#elif defined(__AVX2__)
#define DUET_PART_BYTES 32
#else
#define DUET_PART_BYTES 16
#endif

typedef float FloatPart __attribute__((vector_size(DUET_PART_BYTES)));
typedef int32_t IntPart __attribute__((vector_size(DUET_PART_BYTES)));
typedef uint32_t WordPart __attribute__((vector_size(DUET_PART_BYTES)));

constexpr int kLanes = 16;
constexpr int kPartLanes = DUET_PART_BYTES / 4;
constexpr int kParts = kLanes / kPartLanes;

struct Lanes {
  FloatPart part[kParts];
};

/// Half a part of f32, widened: for sums that float64 makes exact.
constexpr int kHalfLanes = kPartLanes / 2;
typedef float HalfPart __attribute__((vector_size(DUET_PART_BYTES / 2)));
typedef double DoublePart __attribute__((vector_size(DUET_PART_BYTES)));

DUET_LANE DoublePart load_doubles(const float* x) {
  HalfPart half;
  __builtin_memcpy(&half, x, sizeof(half));
  return __builtin_convertvector(half, DoublePart);
}

DUET_LANE void store_rounded(const DoublePart& v, float* out) {
  const HalfPart half = __builtin_convertvector(v, HalfPart);
  __builtin_memcpy(out, &half, sizeof(half));
}

DUET_LANE Lanes splat(float v) {
  Lanes r;
  for (int p = 0; p < kParts; ++p) r.part[p] = v - FloatPart{};  // v - 0 keeps the sign of -0
  return r;
}

// Part by part: a whole struct goes through memory in pieces of another size, which stalls.
DUET_LANE Lanes load(const float* x) {
  Lanes r;
  for (int p = 0; p < kParts; ++p) __builtin_memcpy(&r.part[p], x + p * kPartLanes, sizeof(FloatPart));
  return r;
}

DUET_LANE void store(const Lanes& v, float* out) {
  for (int p = 0; p < kParts; ++p) __builtin_memcpy(out + p * kPartLanes, &v.part[p], sizeof(FloatPart));
}

/// The first `count` < 16 of x, then `fill`.
DUET_LANE Lanes load_some(const float* x, int64_t count, float fill) {
  float buffer[kLanes];
  for (int i = 0; i < kLanes; ++i) buffer[i] = i < count ? x[i] : fill;
  return load(buffer);
}

DUET_LANE void store_some(const Lanes& v, float* out, int64_t count) {
  float buffer[kLanes];
  store(v, buffer);
  for (int64_t i = 0; i < count; ++i) out[i] = buffer[i];
}

DUET_LANE Lanes operator+(const Lanes& a, const Lanes& b) {
  Lanes r;
  for (int p = 0; p < kParts; ++p) r.part[p] = a.part[p] + b.part[p];
  return r;
}

DUET_LANE Lanes operator-(const Lanes& a, const Lanes& b) {
  Lanes r;
  for (int p = 0; p < kParts; ++p) r.part[p] = a.part[p] - b.part[p];
  return r;
}

DUET_LANE Lanes operator*(const Lanes& a, const Lanes& b) {
  Lanes r;
  for (int p = 0; p < kParts; ++p) r.part[p] = a.part[p] * b.part[p];
  return r;
}

/// a · b + c, fused where the level has FMA.
DUET_LANE Lanes fused(const Lanes& a, const Lanes& b, const Lanes& c) {
  Lanes r;
  for (int p = 0; p < kParts; ++p) {
#if defined(__AVX512F__)
    r.part[p] = (FloatPart)_mm512_fmadd_ps((__m512)a.part[p], (__m512)b.part[p], (__m512)c.part[p]);
#elif defined(__FMA__)
    r.part[p] = (FloatPart)_mm256_fmadd_ps((__m256)a.part[p], (__m256)b.part[p], (__m256)c.part[p]);
#else
    r.part[p] = a.part[p] * b.part[p] + c.part[p];
#endif
  }
  return r;
}

/// The larger per lane; a NaN in `b` is passed over.
DUET_LANE Lanes larger(const Lanes& a, const Lanes& b) {
  Lanes r;
  for (int p = 0; p < kParts; ++p) r.part[p] = b.part[p] > a.part[p] ? b.part[p] : a.part[p];
  return r;
}

/// value where x < limit is false (NaN included), else otherwise.
DUET_LANE Lanes unless_below(const Lanes& x, float limit, const Lanes& value, float otherwise) {
  Lanes r;
  for (int p = 0; p < kParts; ++p) {
    const FloatPart low = otherwise - FloatPart{};
    r.part[p] = x.part[p] < limit ? low : value.part[p];
  }
  return r;
}

/// `value` in lanes before `count`, else `fill`.
DUET_LANE Lanes first_lanes(const Lanes& value, int64_t count, float fill) {
  static const int32_t index[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Lanes r;
  for (int p = 0; p < kParts; ++p) {
    IntPart lane;
    __builtin_memcpy(&lane, index + p * kPartLanes, sizeof(lane));
    const FloatPart rest = fill - FloatPart{};
    r.part[p] = lane < static_cast<int32_t>(count) ? value.part[p] : rest;
  }
  return r;
}

/// Sum over the lanes by one tree: 8 apart, 4 apart, 2 apart, 1 apart.
DUET_LANE float lane_sum(const Lanes& v) {
  float s[kLanes];
  store(v, s);
  for (int step = kLanes / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) s[i] += s[i + step];
  }
  return s[0];
}

DUET_LANE float lane_max(const Lanes& v) {
  float s[kLanes];
  store(v, s);
  for (int step = kLanes / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) s[i] = s[i + step] > s[i] ? s[i + step] : s[i];
  }
  return s[0];
}

/// e^x, relative error below 2e-7; 0 below -87.3 (no subnormals), infinity above 88.3, NaN stays.
/// Cephes' expf: x = n ln 2 + r, |r| ≤ ln2 / 2, a polynomial of degree 7 in r, then the exponent.
DUET_LANE Lanes exp_lanes(const Lanes& x) {
  constexpr float kLowest = -87.33f, kHighest = 88.3f;
  constexpr float kMagic = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer
  const Lanes clipped = unless_below(x, kLowest, x, kLowest);
  const Lanes shifted = fused(clipped, splat(1.44269504088896341f), splat(kMagic));
  const Lanes n = shifted - splat(kMagic);
  const Lanes r = fused(n, splat(2.12194440e-4f), fused(n, splat(-0.693359375f), clipped));
  Lanes y = fused(splat(1.9875691500e-4f), r, splat(1.3981999507e-3f));
  y = fused(y, r, splat(8.3334519073e-3f));
  y = fused(y, r, splat(4.1665795894e-2f));
  y = fused(y, r, splat(1.6666665459e-1f));
  y = fused(y, r, splat(0.5f));
  y = fused(y, r * r, r) + splat(1.0f);
  Lanes result;
  for (int p = 0; p < kParts; ++p) {
    const WordPart bits = (WordPart)shifted.part[p] << 23;  // n in the low bits, the magic shifts out
    const FloatPart scale = (FloatPart)(bits + 0x3f800000u);
    const FloatPart infinite = __builtin_inff() - FloatPart{};
    const FloatPart scaled = y.part[p] * scale;
    result.part[p] = x.part[p] > kHighest ? infinite : scaled;
  }
  return unless_below(x, kLowest, result, 0.0f);
}

}  // namespace
}  // namespace duet
