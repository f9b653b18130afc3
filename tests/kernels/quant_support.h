// 8-bit weights as checkpoints hold them, for the tests of packing, products and feed-forward.
#pragma once

#include <string>

#include "gemm_support.h"

namespace duet::test {

/// A [n, k] slice of a larger quantised matrix whose blocks begin before the slice: (row_offset, col_offset)
/// is where in its block element (0, 0) lies.
struct QuantWeights {
  /// e4m3 with a scale per block × block.
  static QuantWeights fp8(int64_t n, int64_t k, int64_t block, int64_t row_offset, int64_t col_offset,
                          uint32_t seed) {
    QuantWeights w(n, k, DType::kF8E4M3, seed);
    const std::vector<float> values = random_floats(n * k, seed, 300.0f);
    for (size_t i = 0; i < values.size(); ++i) {
      // Every size of e4m3, subnormal numbers too.
      w.bytes[i] = static_cast<std::byte>(f32_to_f8e4m3(std::ldexp(values[i], -static_cast<int>(i % 19))));
    }
    const int64_t across = (col_offset + k + block - 1) / block;
    w.scales = random_floats((row_offset + n + block - 1) / block * across, seed + 1, 0.01f);
    w.view.scales = {w.scales.data(), block, block, row_offset, col_offset, across, 1};
    return w;
  }
  /// int8 with a scale per row; -128 occurs.
  static QuantWeights int8(int64_t n, int64_t k, uint32_t seed) {
    QuantWeights w(n, k, DType::kI8, seed);
    std::mt19937 gen(seed);
    for (std::byte& b : w.bytes) b = static_cast<std::byte>(gen() % 256);
    w.scales = random_floats(n, seed + 1, 0.01f);
    w.view.scales.data = w.scales.data();
    return w;
  }

  std::vector<std::byte> bytes;
  std::vector<float> scales;
  WeightView view;

  QuantWeights(QuantWeights&&) = default;  // vectors keep their memory, so the view stays right

 private:
  QuantWeights(int64_t n, int64_t k, DType dtype, uint32_t)
      : bytes(static_cast<size_t>(n * k)), view{bytes.data(), dtype, n, k, k, 1, {}} {}
};

/// The ways in which 8-bit weights are multiplied.
enum class Scheme { kFp8, kW8A16, kW8A8 };
inline const char* name_of(Scheme s) {
  return s == Scheme::kFp8 ? "fp8" : s == Scheme::kW8A16 ? "w8a16" : "w8a8";
}
inline PackAs pack_as(Scheme s) {
  if (s == Scheme::kFp8) return DType::kF8E4M3;
  return {DType::kI8, s == Scheme::kW8A8 ? Inputs::kInt8 : Inputs::kInt16};
}
/// fp8 begins inside a block of 32, on a quad.
inline QuantWeights make_weights(Scheme s, int64_t n, int64_t k, uint32_t seed) {
  if (s == Scheme::kFp8) return QuantWeights::fp8(n, k, 32, 7, 12, seed);
  return QuantWeights::int8(n, k, seed);
}

struct QuantCase {
  CpuLevel level;
  Scheme scheme;
  Rounding rounding;
};
inline std::string name_of(const QuantCase& c) {
  const char* roundings[] = {"exact", "bf16", "f16"};
  return std::string(to_string(c.level)) + '_' + name_of(c.scheme) + '_' +
         roundings[static_cast<int>(c.rounding)];
}
inline void PrintTo(const QuantCase& c, std::ostream* out) {
  *out << name_of(c);
}
inline std::vector<QuantCase> all_quant_cases() {
  std::vector<QuantCase> cases;
  for (const CpuLevel level : available_cpu_levels()) {
    for (const Scheme scheme : {Scheme::kFp8, Scheme::kW8A16, Scheme::kW8A8}) {
      for (const Rounding rounding : all_roundings()) {
        // int8 inputs are made from what comes, whatever --dtype says.
        if (scheme != Scheme::kW8A8 || rounding == Rounding::kNone)
          cases.push_back({level, scheme, rounding});
      }
    }
  }
  return cases;
}

}  // namespace duet::test
