// What stages cost, measured while steps run: nanoseconds per row of each kind of stage, by phase and
// size of the step. Lives on rank 0, whose figures travel with a step, so that all ranks derive one
// program from one table.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "exec/cpu_executor.h"
#include "model/batch.h"
#include "overlap/program.h"

namespace duet {

/// Kinds in order of first appearance; the same on every rank that records the same model.
std::vector<std::string> stage_kinds(const std::vector<Stage>& stages);
/// Rows that a stage works on: its micro-batch's, or in the last layer after the KV write and in the
/// head those whose logits are wanted.
std::vector<int64_t> stage_rows(const std::vector<Stage>& stages, const StepBatch& batch);
/// Cost of every stage from costs per row by kind (in the order of stage_kinds).
std::vector<double> stage_costs(const std::vector<Stage>& stages, const StepBatch& batch,
                                std::span<const float> ns_per_row);

class CostTable {
 public:
  /// Learns from a step that ran.
  void observe(const StepBatch& batch, const Program& program, std::span<const StageTime> times);
  /// Costs per row for a step like this one, in the order of stage_kinds; empty while nothing like it
  /// has run. Changes only when the measured ones have moved away, so programs are not remade all the time.
  const std::vector<float>& costs_for(const StepBatch& batch) const;

 private:
  using Bucket = std::pair<bool, int>;  // has a prompt, log2 of the rows
  static Bucket bucket_of(const StepBatch& batch);

  struct Entry {
    std::vector<double> measured;  // moving average
    std::vector<float> published;
    int steps = 0;  // since published
  };
  std::map<Bucket, Entry> entries_;
};

}  // namespace duet
