#include "opcases/parts.h"

namespace duet {

std::vector<OpCaseSpec> op_cases() {
  std::vector<OpCaseSpec> cases;
  opcases::add_gemm(cases);
  opcases::add_feed_forward(cases);
  opcases::add_attention(cases);
  opcases::add_row_ops(cases);
  return cases;
}

namespace opcases {

std::vector<float> random_floats(int64_t count, uint32_t seed, float scale) {
  std::vector<float> v(static_cast<size_t>(count));
  uint32_t state = seed * 2654435761u + 1;
  for (float& x : v) {
    state = state * 1664525u + 1013904223u;
    x = scale * (static_cast<float>(state >> 8) * 0x1p-23f - 1.0f);
  }
  return v;
}

std::span<const Format> formats() {
  static const Format all[] = {
      {"f32", DType::kF32, Rounding::kNone, Units::kFloat},
      {"bf16", DType::kBf16, Rounding::kBf16, Units::kBf16},
      {"f16", DType::kF16, Rounding::kF16, Units::kFloat},
      {"fp8", DType::kF8E4M3, Rounding::kBf16, Units::kBf16},
      {"w8a16", {DType::kI8, Inputs::kInt16}, Rounding::kBf16, Units::kInt8},
      {"w8a8", {DType::kI8, Inputs::kInt8}, Rounding::kBf16, Units::kInt8},
  };
  return all;
}

Weights::Weights(int64_t n, int64_t k, const Format& format, uint32_t seed)
    : floats(random_floats(n * k, seed)), view{nullptr, format.as.dtype, n, k, k, 1, {}} {
  const auto scale_of = [&](int64_t i) { return 0.004f + 0.001f * static_cast<float>(i % 7); };
  if (format.as.dtype == DType::kF8E4M3) {
    constexpr int64_t kBlock = 128;
    const int64_t across = (k + kBlock - 1) / kBlock;
    for (const float v : floats) bytes.push_back(static_cast<std::byte>(f32_to_f8e4m3(v * 400.0f)));
    for (int64_t i = 0; i < (n + kBlock - 1) / kBlock * across; ++i) scales.push_back(scale_of(i));
    view.scales = {scales.data(), kBlock, kBlock, 0, 0, across, 1};
  } else if (format.as.dtype == DType::kI8) {
    for (const float v : floats)
      bytes.push_back(static_cast<std::byte>(static_cast<int8_t>(std::lrintf(v * 127.0f))));
    for (int64_t i = 0; i < n; ++i) scales.push_back(scale_of(i));
    view.scales.data = scales.data();
  } else {
    view.dtype = DType::kF32;
    view.data = floats.data();
    return;
  }
  view.data = bytes.data();
  floats = {};
}

double relative_error(std::span<const float> got, std::span<const float> want, double allowed) {
  double worst = 0.0, largest = 0.0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
    largest = std::max(largest, std::abs(static_cast<double>(want[i])));
  }
  return worst / (allowed * largest + 1e-30);
}

}  // namespace opcases
}  // namespace duet
