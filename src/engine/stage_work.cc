#include "engine/stage_work.h"

#include <algorithm>

#include "base/error.h"

namespace duet {

namespace {

double keys_visited(int64_t rows, int64_t start) {
  const double n = static_cast<double>(rows);
  return n * (static_cast<double>(start) + 1.0) + n * (n - 1.0) / 2.0;
}

// `expanded`: positions that another part of the sequence has expanded already (ExpandedTiles).
void add_span(int64_t rows, int64_t start, AttentionForm form, int64_t expanded, AttentionWork& work) {
  if (form == AttentionForm::kAbsorbed) {
    work[3] += static_cast<double>(rows);
    work[4] += keys_visited(rows, start);
    return;
  }
  work[0] += static_cast<double>(rows);
  work[1] += static_cast<double>(start + rows - expanded);
  work[2] += keys_visited(rows, start);
}

}  // namespace

StageKinds::StageKinds(const std::vector<Stage>& stages) {
  int last = -1;
  for (const Stage& stage : stages) last = std::max(last, stage.layer);
  bool wanted = false;  // past the last layer's KV write
  int micro_batch = -1;
  for (const Stage& stage : stages) {
    if (stage.micro_batch != micro_batch) wanted = false;
    micro_batch = stage.micro_batch;
    auto kind =
        std::find_if(kinds_.begin(), kinds_.end(), [&](const Kind& k) { return k.name == stage.kind; });
    if (kind == kinds_.end()) kind = kinds_.insert(kind, {stage.kind, stage.lane, stage.kind == "attn_core"});
    const RowSetKind rows = stage.kind == "logits_gather" ? kWholeRows
                            : stage.kind == "best_gather" ? kBestRows
                            : wanted                      ? kWantedRows
                                                          : kAllRows;
    class_.push_back(static_cast<int>(kRowSets * static_cast<size_t>(kind - kinds_.begin()) + rows));
    wanted = wanted || (stage.layer == last && stage.kind == "attn_in");
  }
}

std::vector<MicroBatchWork> work_of(const StepBatch& batch) {
  std::vector<MicroBatchWork> work(static_cast<size_t>(batch.micro_batches()));
  for (size_t m = 0; m < work.size(); ++m) {
    MicroBatchWork& w = work[m];
    const int64_t begin = batch.borders[m], end = batch.borders[m + 1];
    w.rows[kAllRows] = static_cast<double>(end - begin);
    auto row = std::lower_bound(batch.logits_rows.begin(), batch.logits_rows.end(), begin);
    for (const SequenceSpan& span : batch.spans) {
      const int64_t first = std::max(span.first_row, begin), last = std::min(span.first_row + span.rows, end);
      if (first >= last) continue;
      const int64_t start = span.start_position + first - span.first_row;
      add_span(last - first, start, span.form, first > span.first_row ? start : 0, w.attention[kAllRows]);
      for (; row != batch.logits_rows.end() && *row < last; ++row) {
        w.rows[kWantedRows] += 1;
        w.rows[std::binary_search(batch.best_rows.begin(), batch.best_rows.end(), *row) ? kBestRows
                                                                                        : kWholeRows] += 1;
        add_span(1, span.start_position + *row - span.first_row, span.form, 0, w.attention[kWantedRows]);
      }
    }
  }
  return work;
}

std::vector<double> stage_costs(const std::vector<Stage>& stages, const StageKinds& kinds,
                                const std::vector<float>& stage_ns) {
  std::vector<double> costs;
  costs.reserve(stages.size());
  for (size_t s = 0; s < stages.size(); ++s) {
    const size_t at =
        static_cast<size_t>(stages[s].micro_batch) * kinds.classes() + static_cast<size_t>(kinds.class_of(s));
    DUET_CHECK(at < stage_ns.size());
    costs.push_back(double{stage_ns[at]});
  }
  return costs;
}

}  // namespace duet
