// Where a step's rows are cut into micro-batches. Rank 0 asks once per step and the verdict
// travels with the step, so ranks never decide on their own facts.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace duet {

/// Cost of a row at position p, in arbitrary units: row + key · (p + 1). Attention grows with the
/// context, everything else does not.
struct RowCost {
  double row = 1.0;
  double key = 0.0;
};

/// Consecutive rows of one sequence in a step: row i sits at position start_position + i.
struct SpanShape {
  int64_t rows = 0;
  int64_t start_position = 0;
  RowCost cost;
};

struct SplitOptions {
  int micro_batches = 2;
  /// Cut at a border between sequences when each part's cost then differs from the ideal by at most
  /// this fraction of it (--dbo-imbalance); otherwise inside a sequence.
  double imbalance = 0.1;
  /// Shares of the cost, one per part; empty: equal.
  std::vector<double> shares;
};

/// Ascending row borders, first 0, last the number of rows; micro-batch i gets rows
/// [borders[i], borders[i + 1]). Fewer parts than asked for when there are fewer rows: no part is
/// ever empty.
std::vector<int64_t> split_rows(std::span<const SpanShape> spans, const SplitOptions& options);

/// Whether a step is split at all (--dbo on): prefill steps from `prefill_threshold` tokens on,
/// steps of decodes only from `decode_threshold` on. vLLM's names and meaning: at the threshold it acts.
struct SplitThresholds {
  int64_t prefill_tokens = 512;
  int64_t decode_tokens = 32;
};
bool worth_splitting(int64_t rows, bool has_prefill, const SplitThresholds& thresholds);

}  // namespace duet
