// Element types of weights, caches and wires, and the one set of conversions everybody uses, so
// that a value rounds the same way wherever it is rounded (part of the exactness contract).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace duet {

enum class DType : uint8_t { kF32, kBf16, kF16, kF8E4M3, kI8, kI32, kI64, kU8 };

/// Bytes of one element.
size_t dtype_bytes(DType dtype);
/// "float32", "bfloat16", "float16", …: the names of config.json and flags.
const char* to_string(DType dtype);

struct bf16_t {
  uint16_t bits;
};
struct f16_t {
  uint16_t bits;
};

inline float to_f32(bf16_t v) {
  return std::bit_cast<float>(static_cast<uint32_t>(v.bits) << 16);
}

/// Round to nearest, ties to even; NaN stays NaN (quiet).
inline bf16_t to_bf16(float v) {
  const uint32_t u = std::bit_cast<uint32_t>(v);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

/// IEEE binary16, round to nearest even, subnormals kept, overflow to infinity: as F16C does.
f16_t to_f16(float v);
float to_f32(f16_t v);

/// Rows of `count` elements; bulk forms of the above, the same bits at every CPU level.
void f32_to_bf16(const float* in, bf16_t* out, size_t count);
void bf16_to_f32(const bf16_t* in, float* out, size_t count);
void f32_to_f16(const float* in, f16_t* out, size_t count);
void f16_to_f32(const f16_t* in, float* out, size_t count);

/// OCP 8-bit float, 4 exponent and 3 mantissa bits ("e4m3fn"): no infinity, NaN is 0x7f and 0xff.
float f8e4m3_to_f32(uint8_t bits);
/// Round to nearest even; beyond ±448 to ±448, as published checkpoints are made. NaN stays NaN.
uint8_t f32_to_f8e4m3(float v);

/// `count` elements of `dtype` (f32, bf16, f16; f8e4m3 and i8: the bare values, without their scales)
/// to f32, and back (f32, bf16, f16, f8e4m3); throws kUnsupported for others.
void convert_to_f32(const void* in, DType dtype, float* out, size_t count);
void convert_from_f32(const float* in, DType dtype, void* out, size_t count);

/// A row of weights as int8: in / s to nearest even, s = max |in| / 127, which is returned; -128 never
/// occurs, so that the negative is there as well. 0, and zeros, for a row of zeros. NaN or infinity in the
/// row gives a scale that is not finite.
float quantise_row_i8(const float* in, size_t count, int8_t* out);

/// What inputs of matrix products are rounded to before they are multiplied (--dtype).
enum class Rounding : uint8_t { kNone, kBf16, kF16 };

inline float round_to(float v, Rounding rounding) {
  switch (rounding) {
    case Rounding::kNone: return v;
    case Rounding::kBf16: return to_f32(to_bf16(v));
    case Rounding::kF16: return to_f32(to_f16(v));
  }
  return v;
}

}  // namespace duet
