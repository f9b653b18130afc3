// The feed-forward of groups of rows, shared by mlp() and experts(), and what a CPU level contributes
// to it. A segment is some rows and the MLP they go through; threads split panels, never a sum.
// No inline functions: ffn_<level>.cc are compiled with their level's instructions.
#pragma once

#include "kernels/ops.h"

namespace duet::ffn_detail {

struct FfnKernels {
  /// in: `panels` times 16 gates, then 16 ups; out[16 · panels] = gate · sigmoid(gate) · up.
  void (*silu_mul)(const float* in, int64_t panels, float* out);
  /// out[i] = fma(weight, y[i], out[i]).
  void (*scaled_add)(const float* y, float weight, int64_t count, float* out);
};
const FfnKernels* ffn_kernels_portable();
const FfnKernels* ffn_kernels_avx2();
const FfnKernels* ffn_kernels_avx512();

struct Segment {
  const MlpWeights* weights = nullptr;
  int64_t first_row = 0;  // among the rows of its group
  int64_t rows = 0;
  const int32_t* index = nullptr;      // row i is x row index[i]; null: x row first_row + i
  const float* row_weights = nullptr;  // with index
  int64_t first_item = 0;              // of the gate-and-up phase
};

/// Scratch of one group: `rows` rows in all, up to `rows` segments.
struct GroupScratch {
  Segment* segments = nullptr;
  float* x = nullptr;        // packed rows of x
  float* hidden = nullptr;   // packed rows of silu(gate) · up, or floats on their way to int8
  float* threads = nullptr;  // one tile each
  int64_t x_words = 0;       // of one row: row i of the group starts at x + i · x_words
  int64_t hidden_words = 0;  // for the widest expert
};
GroupScratch take_scratch(Arena& arena, int64_t rows, int64_t hidden, int64_t intermediate, int threads);
size_t scratch_bytes(int64_t rows, int64_t hidden, int64_t intermediate, int threads);

/// Runs `count` segments of ≤ kBlockRows rows in all. With index: out[index[i]] = fma(row_weights[i],
/// y[i], out[index[i]]), segments in order. Without: out row = y or, with kYes, out + y.
void run_group(const KernelContext& cx, ConstRows x, const GroupScratch& scratch, int64_t count, Rows out,
               Accumulate accumulate);

}  // namespace duet::ffn_detail
