// Oracles of matrix products and the feed-forward: plain loops in double over the unpacked weights.
// Called by tests and benchmarks only. They round inputs where the operations do; sums are exact
// enough (double) to be the truth that float32 results are held against.
#pragma once

#include "kernels/ops.h"

namespace duet::ref {

/// Element (n, k) after the rounding that packing as `dtype` does.
float weight_at(const WeightView& w, int64_t n, int64_t k, DType dtype);

/// c (+)= round(a) · wᵀ, w [N, K] packed as `dtype`.
void gemm(Rounding rounding, ConstRows a, const WeightView& w, DType dtype, Rows c,
          Accumulate accumulate = Accumulate::kNo);

/// g / (1 + e^-g).
double silu(double g);

/// out (+)= round(silu(gate(x)) · up(x)) · downᵀ.
void mlp(Rounding rounding, ConstRows x, const WeightView& gate, const WeightView& up, const WeightView& down,
         DType dtype, Rows out, Accumulate accumulate = Accumulate::kNo);

struct ExpertViews {
  WeightView gate, up, down;
};
/// For each token, its experts in ascending order: out += weight · mlp_e(x).
void experts(Rounding rounding, ConstRows x, std::span<const ExpertViews> experts, const ExpertGroups& groups,
             DType dtype, Rows out);

}  // namespace duet::ref
