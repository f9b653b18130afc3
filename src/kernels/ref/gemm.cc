#include "kernels/ref/gemm.h"

#include <cmath>
#include <vector>

namespace duet::ref {

float weight_at(const WeightView& w, int64_t n, int64_t k, DType dtype) {
  const int64_t at = n * w.row_stride + k * w.col_stride;
  float value = 0.0f;
  convert_to_f32(static_cast<const std::byte*>(w.data) + at * static_cast<int64_t>(dtype_bytes(w.dtype)),
                 w.dtype, &value, 1);
  if (dtype == DType::kBf16) return round_to(value, Rounding::kBf16);
  if (dtype == DType::kF16) return round_to(value, Rounding::kF16);
  return value;
}

void gemm(Rounding rounding, ConstRows a, const WeightView& w, DType dtype, Rows c, Accumulate accumulate) {
  for (int64_t m = 0; m < a.rows; ++m) {
    for (int64_t n = 0; n < w.rows; ++n) {
      double sum = accumulate == Accumulate::kYes ? c.row(m)[n] : 0.0;
      for (int64_t k = 0; k < a.cols; ++k) {
        sum += static_cast<double>(round_to(a.row(m)[k], rounding)) * weight_at(w, n, k, dtype);
      }
      c.row(m)[n] = static_cast<float>(sum);
    }
  }
}

double silu(double g) {
  return g / (1.0 + std::exp(-g));
}

void mlp(Rounding rounding, ConstRows x, const WeightView& gate, const WeightView& up, const WeightView& down,
         DType dtype, Rows out, Accumulate accumulate) {
  const int64_t inner = gate.rows;
  std::vector<float> g(static_cast<size_t>(x.rows * inner));
  std::vector<float> u(g.size());
  const Rows gates(g.data(), x.rows, inner, inner);
  const Rows ups(u.data(), x.rows, inner, inner);
  gemm(rounding, x, gate, dtype, gates);
  gemm(rounding, x, up, dtype, ups);
  for (size_t i = 0; i < g.size(); ++i) g[i] = static_cast<float>(silu(g[i]) * u[i]);
  gemm(rounding, gates, down, dtype, out, accumulate);
}

void experts(Rounding rounding, ConstRows x, std::span<const ExpertViews> experts, const ExpertGroups& groups,
             DType dtype, Rows out) {
  std::vector<float> y(static_cast<size_t>(out.cols));
  for (size_t e = 0; e < experts.size(); ++e) {
    for (auto i = static_cast<size_t>(groups.offsets[e]); i < static_cast<size_t>(groups.offsets[e + 1]);
         ++i) {
      const ConstRows row(x.row(groups.rows[i]), 1, x.cols, x.stride);
      mlp(rounding, row, experts[e].gate, experts[e].up, experts[e].down, dtype,
          Rows(y.data(), 1, out.cols, out.cols));
      float* to = out.row(groups.rows[i]);
      for (int64_t c = 0; c < out.cols; ++c) to[c] += groups.weights[i] * y[static_cast<size_t>(c)];
    }
  }
}

}  // namespace duet::ref
