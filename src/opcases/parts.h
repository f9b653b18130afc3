// What the files of cases share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "opcases/op_case.h"

namespace duet::opcases {

/// Sets of operands together exceed the last-level cache by this.
constexpr int64_t kColdBytes = int64_t{160} << 20;

void add_gemm(std::vector<OpCaseSpec>& cases);
void add_feed_forward(std::vector<OpCaseSpec>& cases);
void add_attention(std::vector<OpCaseSpec>& cases);
void add_row_ops(std::vector<OpCaseSpec>& cases);

/// Uniform in ±scale, the same in every run.
std::vector<float> random_floats(int64_t count, uint32_t seed, float scale = 1.0f);

/// How weights are stored and multiplied.
struct Format {
  const char* name;
  PackAs as;
  Rounding rounding;
  Units units;
};
std::span<const Format> formats();

/// A weight matrix as a checkpoint of a format holds it.
struct Weights {
  Weights(int64_t n, int64_t k, const Format& format, uint32_t seed);
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  std::vector<float> floats, scales;
  std::vector<std::byte> bytes;
  WeightView view;
};

/// The largest |got − want|, as a share of `allowed` times the largest |want|.
double relative_error(std::span<const float> got, std::span<const float> want, double allowed);

}  // namespace duet::opcases
