#include "kernels/ref/gemm.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace duet::ref {

float weight_at(const WeightView& w, int64_t n, int64_t k, DType dtype) {
  const int64_t at = n * w.row_stride + k * w.col_stride;
  float value = 0.0f;
  convert_to_f32(static_cast<const std::byte*>(w.data) + at * static_cast<int64_t>(dtype_bytes(w.dtype)),
                 w.dtype, &value, 1);
  if (w.scales.data) value *= w.scales.at(n, k);
  if (dtype == DType::kBf16) return round_to(value, Rounding::kBf16);
  if (dtype == DType::kF16) return round_to(value, Rounding::kF16);
  return value;
}

std::vector<double> weight_row(const WeightView& w, int64_t n, PackAs as) {
  const bool kept = w.dtype == as.dtype && (as.dtype == DType::kI8 || as.dtype == DType::kF8E4M3);
  std::vector<double> row(static_cast<size_t>(w.cols));
  for (int64_t k = 0; k < w.cols; ++k) {
    double& v = row[static_cast<size_t>(k)];
    if (!kept && as.dtype != DType::kI8) {
      v = weight_at(w, n, k, as.dtype);
      continue;
    }
    WeightView bare = w;
    bare.scales = {};
    v = weight_at(bare, n, k, DType::kF32);
    if (w.scales.data) v *= w.scales.at(n, k);
  }
  if (kept || as.dtype != DType::kI8) return row;
  float most = 0.0f;
  for (const double v : row) most = std::max(most, std::fabs(static_cast<float>(v)));
  const float scale = most / 127.0f;
  for (double& v : row)
    v = scale > 0.0f ? std::nearbyint(static_cast<float>(v) / scale) * double{scale} : 0.0;
  return row;
}

std::vector<double> input_row(const float* a, int64_t k, Rounding rounding, Inputs inputs) {
  std::vector<double> row(static_cast<size_t>(k));
  float most = 0.0f;
  for (int64_t i = 0; i < k; ++i) most = std::max(most, std::fabs(a[i]));
  const float scale = most / (inputs == Inputs::kInt8 ? 127.0f : static_cast<float>(kInt16Most));
  for (int64_t i = 0; i < k; ++i) {
    double& v = row[static_cast<size_t>(i)];
    if (inputs == Inputs::kFloat) {
      v = round_to(a[i], rounding);
    } else {
      v = scale > 0.0f ? std::nearbyint(a[i] * (1.0f / scale)) * double{scale} : 0.0;
    }
  }
  return row;
}

void gemm(Rounding rounding, ConstRows a, const WeightView& w, PackAs as, Rows c, Accumulate accumulate) {
  std::vector<std::vector<double>> inputs;
  for (int64_t m = 0; m < a.rows; ++m) inputs.push_back(input_row(a.row(m), a.cols, rounding, as.inputs));
  for (int64_t n = 0; n < w.rows; ++n) {
    const std::vector<double> weights = weight_row(w, n, as);
    for (int64_t m = 0; m < a.rows; ++m) {
      double sum = accumulate == Accumulate::kYes ? c.row(m)[n] : 0.0;
      for (size_t k = 0; k < weights.size(); ++k) sum += inputs[static_cast<size_t>(m)][k] * weights[k];
      c.row(m)[n] = static_cast<float>(sum);
    }
  }
}

double silu(double g) {
  return g / (1.0 + std::exp(-g));
}

void mlp(Rounding rounding, ConstRows x, const WeightView& gate, const WeightView& up, const WeightView& down,
         PackAs as, Rows out, Accumulate accumulate) {
  const int64_t inner = gate.rows;
  std::vector<float> g(static_cast<size_t>(x.rows * inner));
  std::vector<float> u(g.size());
  const Rows gates(g.data(), x.rows, inner, inner);
  const Rows ups(u.data(), x.rows, inner, inner);
  gemm(rounding, x, gate, as, gates);
  gemm(rounding, x, up, as, ups);
  for (size_t i = 0; i < g.size(); ++i) g[i] = static_cast<float>(silu(g[i]) * u[i]);
  gemm(rounding, gates, down, as, out, accumulate);
}

void experts(Rounding rounding, ConstRows x, std::span<const ExpertViews> experts, const ExpertGroups& groups,
             PackAs as, Rows out) {
  std::vector<float> y(static_cast<size_t>(out.cols));
  for (size_t e = 0; e < experts.size(); ++e) {
    for (auto i = static_cast<size_t>(groups.offsets[e]); i < static_cast<size_t>(groups.offsets[e + 1]);
         ++i) {
      const ConstRows row(x.row(groups.rows[i]), 1, x.cols, x.stride);
      mlp(rounding, row, experts[e].gate, experts[e].up, experts[e].down, as,
          Rows(y.data(), 1, out.cols, out.cols));
      float* to = out.row(groups.rows[i]);
      for (int64_t c = 0; c < out.cols; ++c) to[c] += groups.weights[i] * y[static_cast<size_t>(c)];
    }
  }
}

}  // namespace duet::ref
