#include "engine/cost_table.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace duet {

namespace {

// A new figure counts a quarter: steps vary, and a machine's hiccup must not decide.
constexpr double kNewWeight = 0.25;
// Programs are remade when the costs have moved by this share of a step, and not sooner than this many
// steps after the last time.
constexpr double kRepublishShare = 0.1;
constexpr int kRepublishSteps = 8;

std::vector<int> kind_index(const std::vector<Stage>& stages) {
  const std::vector<std::string> kinds = stage_kinds(stages);
  std::vector<int> index;
  for (const Stage& stage : stages) {
    index.push_back(static_cast<int>(std::find(kinds.begin(), kinds.end(), stage.kind) - kinds.begin()));
  }
  return index;
}

}  // namespace

std::vector<std::string> stage_kinds(const std::vector<Stage>& stages) {
  std::vector<std::string> kinds;
  for (const Stage& stage : stages) {
    if (std::find(kinds.begin(), kinds.end(), stage.kind) == kinds.end()) kinds.push_back(stage.kind);
  }
  return kinds;
}

std::vector<int64_t> stage_rows(const std::vector<Stage>& stages, const StepBatch& batch) {
  std::vector<int64_t> all, wanted(static_cast<size_t>(batch.micro_batches()), 0);
  for (size_t m = 1; m < batch.borders.size(); ++m) {
    all.push_back(batch.borders[m] - batch.borders[m - 1]);
    for (int32_t row : batch.logits_rows)
      wanted[m - 1] += row >= batch.borders[m - 1] && row < batch.borders[m];
  }
  int last = -1;
  for (const Stage& stage : stages) last = std::max(last, stage.layer);
  std::vector<int64_t> rows;
  bool tail = false;  // past the last layer's KV write
  int micro_batch = -1;
  for (const Stage& stage : stages) {
    if (stage.micro_batch != micro_batch) tail = false;
    micro_batch = stage.micro_batch;
    const size_t m = static_cast<size_t>(micro_batch);
    rows.push_back(tail ? wanted[m] : all[m]);
    tail = tail || (stage.layer == last && stage.kind == "attn_in");
  }
  return rows;
}

std::vector<double> stage_costs(const std::vector<Stage>& stages, const StepBatch& batch,
                                std::span<const float> ns_per_row) {
  const std::vector<int> kind = kind_index(stages);
  const std::vector<int64_t> rows = stage_rows(stages, batch);
  std::vector<double> costs;
  for (size_t s = 0; s < stages.size(); ++s) {
    const size_t k = static_cast<size_t>(kind[s]);
    costs.push_back(k < ns_per_row.size() ? double{ns_per_row[k]} * static_cast<double>(rows[s]) : 0.0);
  }
  return costs;
}

CostTable::Bucket CostTable::bucket_of(const StepBatch& batch) {
  const bool prompt = std::any_of(batch.spans.begin(), batch.spans.end(),
                                  [](const SequenceSpan& s) { return s.form == AttentionForm::kExpanded; });
  return {prompt, std::bit_width(static_cast<uint64_t>(batch.rows()))};
}

void CostTable::observe(const StepBatch& batch, const Program& program, std::span<const StageTime> times) {
  const std::vector<int> kind = kind_index(program.stages);
  const std::vector<int64_t> rows = stage_rows(program.stages, batch);
  const size_t kinds = stage_kinds(program.stages).size();
  std::vector<double> ns(kinds, 0), total(kinds, 0);
  for (size_t s = 0; s < times.size(); ++s) {
    if (rows[s] == 0) continue;
    ns[static_cast<size_t>(kind[s])] += static_cast<double>(times[s].end_ns - times[s].start_ns);
    total[static_cast<size_t>(kind[s])] += static_cast<double>(rows[s]);
  }
  Entry& entry = entries_[bucket_of(batch)];
  const bool fresh = entry.measured.empty();
  if (fresh) entry.measured.assign(kinds, 0);
  double moved = 0, all = 0;
  for (size_t k = 0; k < kinds; ++k) {
    if (total[k] == 0) continue;
    const double now = ns[k] / total[k];
    entry.measured[k] += (fresh ? 1.0 : kNewWeight) * (now - entry.measured[k]);
    all += entry.measured[k] * total[k];
    if (!entry.published.empty())
      moved += std::abs(entry.measured[k] - double{entry.published[k]}) * total[k];
  }
  ++entry.steps;
  if (entry.published.empty() || (entry.steps >= kRepublishSteps && moved > kRepublishShare * all)) {
    entry.published.assign(entry.measured.begin(), entry.measured.end());
    entry.steps = 0;
  }
}

const std::vector<float>& CostTable::costs_for(const StepBatch& batch) const {
  static const std::vector<float> none;
  const auto found = entries_.find(bucket_of(batch));
  return found == entries_.end() ? none : found->second.published;
}

}  // namespace duet
