#include "model/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace duet {

namespace {

// Index of the frequency that turns `turns` times over the original context.
double yarn_correction_dim(double turns, double dim, double theta, double context) {
  return dim * std::log(context / (turns * 2.0 * std::numbers::pi)) / (2.0 * std::log(theta));
}

/// Stretches `frequency` as YaRN does and returns the factor of cos and sin.
double apply_yarn(const RopeConfig& rope, double dim, std::vector<double>& frequency) {
  const double context = static_cast<double>(rope.original_max_position_embeddings);
  double low = yarn_correction_dim(rope.beta_fast, dim, rope.theta, context);
  double high = yarn_correction_dim(rope.beta_slow, dim, rope.theta, context);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;
  for (size_t j = 0; j < frequency.size(); ++j) {
    // Fast frequencies stay, slow ones are stretched, those between are blended.
    const double ramp = std::clamp((static_cast<double>(j) - low) / (high - low), 0.0, 1.0);
    double& f = frequency[j];
    f = f / rope.factor * ramp + f * (1.0 - ramp);
  }
  if (rope.attention_factor) return *rope.attention_factor;
  if (rope.mscale != 0.0 && rope.mscale_all_dim != 0.0)
    return yarn_mscale(rope.factor, rope.mscale) / yarn_mscale(rope.factor, rope.mscale_all_dim);
  return yarn_mscale(rope.factor, 1.0);
}

/// Llama 3.1: wavelengths well inside the original context stay, those beyond it are stretched by the whole
/// factor, and between high_freq_factor and low_freq_factor turns over that context the two are blended.
void apply_llama3(const RopeConfig& rope, std::vector<double>& frequency) {
  const double context = static_cast<double>(rope.original_max_position_embeddings);
  for (double& f : frequency) {
    const double turns = context * f / (2.0 * std::numbers::pi);
    if (turns > rope.high_freq_factor) continue;
    if (turns < rope.low_freq_factor) {
      f /= rope.factor;
      continue;
    }
    const double smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
    f = (1.0 - smooth) * f / rope.factor + smooth * f;
  }
}

}  // namespace

double yarn_mscale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

RopeTable make_rope_table(const RopeConfig& rope, int64_t rope_dim, int64_t positions) {
  const int64_t half = rope_dim / 2;
  const double dim = static_cast<double>(rope_dim);
  std::vector<double> frequency(static_cast<size_t>(half));
  for (int64_t j = 0; j < half; ++j) {
    frequency[static_cast<size_t>(j)] = std::pow(rope.theta, -2.0 * static_cast<double>(j) / dim);
  }
  double scale = 1.0;
  switch (rope.type) {
    case RopeType::kDefault: break;
    case RopeType::kYarn: scale = apply_yarn(rope, dim, frequency); break;
    case RopeType::kLlama3: apply_llama3(rope, frequency); break;
    case RopeType::kLinear:
      for (double& f : frequency) f /= rope.factor;
      break;
  }
  RopeTable table;
  table.positions = positions;
  table.half = static_cast<int>(half);
  table.cos.resize(static_cast<size_t>(positions * half));
  table.sin.resize(static_cast<size_t>(positions * half));
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t j = 0; j < half; ++j) {
      const double angle = static_cast<double>(p) * frequency[static_cast<size_t>(j)];
      table.cos[static_cast<size_t>(p * half + j)] = static_cast<float>(std::cos(angle) * scale);
      table.sin[static_cast<size_t>(p * half + j)] = static_cast<float>(std::sin(angle) * scale);
    }
  }
  return table;
}

}  // namespace duet
