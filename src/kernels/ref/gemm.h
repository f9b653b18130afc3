// Oracles of matrix products and the feed-forward: plain loops in double over the unpacked weights.
// Called by tests and benchmarks only. They round inputs where the operations do; sums are exact
// enough (double) to be the truth that float32 results are held against.
#pragma once

#include "kernels/ops.h"

namespace duet::ref {

/// Element (n, k) after the rounding that packing as `dtype` (a float) does.
float weight_at(const WeightView& w, int64_t n, int64_t k, DType dtype);
/// Row n as packed: what the elements stand for, scales multiplied in.
std::vector<double> weight_row(const WeightView& w, int64_t n, PackAs as);
/// A row of activations as it is multiplied: rounded, or an integer times its scale.
std::vector<double> input_row(const float* a, int64_t k, Rounding rounding, Inputs inputs);

/// c (+)= inputs(a) · wᵀ, w [N, K].
void gemm(Rounding rounding, ConstRows a, const WeightView& w, PackAs as, Rows c,
          Accumulate accumulate = Accumulate::kNo);

/// g / (1 + e^-g).
double silu(double g);

/// out (+)= round(silu(gate(x)) · up(x)) · downᵀ.
void mlp(Rounding rounding, ConstRows x, const WeightView& gate, const WeightView& up, const WeightView& down,
         PackAs as, Rows out, Accumulate accumulate = Accumulate::kNo);

struct ExpertViews {
  WeightView gate, up, down;
};
/// For each token, its experts in ascending order: out += weight · mlp_e(x).
void experts(Rounding rounding, ConstRows x, std::span<const ExpertViews> experts, const ExpertGroups& groups,
             PackAs as, Rows out);

}  // namespace duet::ref
