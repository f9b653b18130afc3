// Inputs for the tests of matrix products: random matrices, weights stored as any type, a context.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/ops.h"

namespace duet::test {

inline std::vector<float> random_floats(int64_t count, uint32_t seed, float scale = 1.0f) {
  std::mt19937 gen(seed);
  std::uniform_real_distribution<float> dist(-scale, scale);
  std::vector<float> v(static_cast<size_t>(count));
  for (float& x : v) x = dist(gen);
  return v;
}

/// A [n, k] weight matrix stored as `dtype`; transposed: stored [k, n] and viewed as [n, k].
struct StoredWeights {
  StoredWeights(int64_t n, int64_t k, DType dtype, uint32_t seed, bool transposed = false, float scale = 1.0f)
      : bytes(static_cast<size_t>(n * k) * dtype_bytes(dtype)) {
    const std::vector<float> f = random_floats(n * k, seed, scale);
    if (!f.empty()) convert_from_f32(f.data(), dtype, bytes.data(), f.size());
    view = transposed ? WeightView{bytes.data(), dtype, n, k, 1, n}
                      : WeightView{bytes.data(), dtype, n, k, k, 1};
  }
  std::vector<std::byte> bytes;
  WeightView view;
};

inline bool same_bits(const float* a, const float* b, int64_t count) {
  return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(float)) == 0;
}

/// Scratch and threads for one context.
struct TestContext {
  TestContext(CpuLevel level, int threads, size_t scratch_bytes, Rounding rounding = Rounding::kNone)
      : pool(threads), arena(scratch_bytes), cx{level, threads > 1 ? &pool : nullptr, &arena, rounding} {}
  ThreadPool pool;
  Arena arena;
  KernelContext cx;
};

inline const std::vector<Rounding>& all_roundings() {
  static const std::vector<Rounding> all = {Rounding::kNone, Rounding::kBf16, Rounding::kF16};
  return all;
}
inline const std::vector<DType>& packable_types() {
  static const std::vector<DType> all = {DType::kF32, DType::kBf16, DType::kF16};
  return all;
}

}  // namespace duet::test
