// In which form activations are multiplied. No functions here: files of every instruction set include it.
#pragma once

#include <cstdint>

namespace duet {

/// What a row of activations becomes before the product.
enum class Inputs : uint8_t {
  kFloat,  // rounded as the context says
  kInt8,   // W8A8: x · (1 / s) to nearest even, s = max |x| / 127 of the row; i8 weights only
  kInt16,  // the same with s = max |x| / 32512, for i8 weights whose inputs matter more
};
/// A 16-bit input is kInt16Base · high + low, both from −127 to 127, so its product is that of two rows of
/// int8.
constexpr int kInt16Base = 255;
constexpr int kInt16Most = kInt16Base * 127 + 127;

}  // namespace duet
