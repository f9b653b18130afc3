// cos and sin of rotary position embeddings, for every family and every kind of scaling. Called once
// when a model is built.
#pragma once

#include "kernels/ops.h"
#include "load/config.h"

namespace duet {

/// cos and sin for positions [0, positions): plain, linear, llama3 or YaRN (arXiv 2309.00071) as Hugging
/// Face computes them, in float64 before the last rounding.
RopeTable make_rope_table(const RopeConfig& rope, int64_t rope_dim, int64_t positions);

/// YaRN's temperature: grows with the logarithm of the stretch (arXiv 2309.00071, §3.4).
double yarn_mscale(double factor, double mscale);

}  // namespace duet
