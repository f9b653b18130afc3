#include "kernels/ref/row_ops.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace duet::ref {

void rms_norm(ConstRows x, std::span<const float> weight, float eps, Rows out) {
  for (int64_t r = 0; r < x.rows; ++r) {
    double sum = 0.0;
    for (int64_t c = 0; c < x.cols; ++c)
      sum += static_cast<double>(x.row(r)[c]) * static_cast<double>(x.row(r)[c]);
    const double factor = 1.0 / std::sqrt(sum / static_cast<double>(x.cols) + static_cast<double>(eps));
    for (int64_t c = 0; c < x.cols; ++c) {
      out.row(r)[c] = static_cast<float>(static_cast<double>(x.row(r)[c]) * factor *
                                         static_cast<double>(weight[static_cast<size_t>(c)]));
    }
  }
}

void rope_interleaved(Rows x, int heads, int64_t head_stride, int64_t offset,
                      std::span<const int32_t> positions, const RopeTable& table) {
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int h = 0; h < heads; ++h) {
      for (int j = 0; j < table.half; ++j) {
        const auto at = static_cast<size_t>(positions[static_cast<size_t>(r)] * table.half + j);
        const auto c = static_cast<double>(table.cos[at]), s = static_cast<double>(table.sin[at]);
        float* pair = x.row(r) + h * head_stride + offset + 2 * j;
        const auto a = static_cast<double>(pair[0]), b = static_cast<double>(pair[1]);
        pair[0] = static_cast<float>(a * c - b * s);
        pair[1] = static_cast<float>(a * s + b * c);
      }
    }
  }
}

void rope_halves(Rows x, int heads, int64_t head_stride, int64_t offset, std::span<const int32_t> positions,
                 const RopeTable& table) {
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int h = 0; h < heads; ++h) {
      for (int j = 0; j < table.half; ++j) {
        const auto at = static_cast<size_t>(positions[static_cast<size_t>(r)] * table.half + j);
        const auto c = static_cast<double>(table.cos[at]), s = static_cast<double>(table.sin[at]);
        float& low = x.row(r)[h * head_stride + offset + j];
        float& high = x.row(r)[h * head_stride + offset + table.half + j];
        const auto a = static_cast<double>(low), b = static_cast<double>(high);
        low = static_cast<float>(a * c - b * s);
        high = static_cast<float>(b * c + a * s);
      }
    }
  }
}

void add_bias(std::span<const float> bias, Rows out) {
  for (int64_t r = 0; r < out.rows; ++r) {
    for (int64_t c = 0; c < out.cols; ++c) out.row(r)[c] += bias[static_cast<size_t>(c)];
  }
}

namespace {

/// Indices of the k largest, the lower index first among equals.
std::vector<int32_t> top(const std::vector<double>& values, int k) {
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
  });
  order.resize(static_cast<size_t>(k));
  return order;
}

std::vector<double> scores_of(const float* logits, const GateParams& p) {
  std::vector<double> scores(logits, logits + p.experts);
  if (p.score == GateScore::kSigmoid) {
    for (double& s : scores) s = 1.0 / (1.0 + std::exp(-s));
    return scores;
  }
  const double peak = *std::max_element(scores.begin(), scores.end());
  double total = 0.0;
  for (double& s : scores) total += s = std::exp(s - peak);
  for (double& s : scores) s /= total;
  return scores;
}

}  // namespace

void gate_top_k(ConstRows logits, const GateParams& p, std::span<const float> bias, int32_t* ids,
                float* weights) {
  for (int64_t r = 0; r < logits.rows; ++r) {
    const std::vector<double> scores = scores_of(logits.row(r), p);
    std::vector<double> choice = scores;
    if (p.method != GateMethod::kGreedy) {
      for (size_t e = 0; e < bias.size(); ++e) choice[e] += static_cast<double>(bias[e]);
      const int size = p.experts / p.groups;
      std::vector<double> group_scores;
      for (int g = 0; g < p.groups; ++g) {
        std::vector<double> group(choice.begin() + g * size, choice.begin() + (g + 1) * size);
        std::sort(group.rbegin(), group.rend());
        const bool two = p.method == GateMethod::kNoAuxTc && size > 1;
        group_scores.push_back(two ? group[0] + group[1] : group[0]);
      }
      const std::vector<int32_t> kept = top(group_scores, p.top_groups);
      for (int e = 0; e < p.experts; ++e) {
        if (std::find(kept.begin(), kept.end(), e / size) == kept.end()) choice[static_cast<size_t>(e)] = 0.0;
      }
    }
    std::vector<int32_t> chosen = top(choice, p.top_k);
    std::sort(chosen.begin(), chosen.end());
    double sum = 0.0;
    const std::vector<double>& from = p.method == GateMethod::kGroupMax ? choice : scores;
    for (int32_t e : chosen) sum += from[static_cast<size_t>(e)];
    for (int j = 0; j < p.top_k; ++j) {
      const int32_t e = chosen[static_cast<size_t>(j)];
      const double w = from[static_cast<size_t>(e)];
      ids[r * p.top_k + j] = e;
      weights[r * p.top_k + j] =
          static_cast<float>((p.normalize ? w / (sum + 1e-20) : w) * static_cast<double>(p.scaling));
    }
  }
}

void add_rows(ConstRows x, Rows out) {
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) out.row(r)[c] += x.row(r)[c];
  }
}

int64_t argmax(std::span<const float> values) {
  int64_t best = -1;
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isnan(values[i])) continue;
    if (best < 0 || values[i] > values[static_cast<size_t>(best)]) best = static_cast<int64_t>(i);
  }
  return best;
}

void log_softmax(std::span<const float> values, std::span<float> out) {
  double peak = -INFINITY;
  for (float v : values) peak = std::max(peak, static_cast<double>(v));
  double sum = 0.0;
  for (float v : values) sum += std::exp(static_cast<double>(v) - peak);
  const double log_sum = peak + std::log(sum);
  for (size_t i = 0; i < values.size(); ++i)
    out[i] = static_cast<float>(static_cast<double>(values[i]) - log_sum);
}

}  // namespace duet::ref
