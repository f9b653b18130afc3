#include "overlap/splitter.h"

#include <algorithm>
#include <cmath>

namespace duet {

namespace {

// Cost of `count` rows from position `start` on.
double cost_of(int64_t start, int64_t count, const RowCost& c) {
  const double n = static_cast<double>(count);
  return n * c.row + c.key * (n * (static_cast<double>(start) + 1.0) + n * (n - 1.0) / 2.0);
}

}  // namespace

std::vector<int64_t> split_rows(std::span<const SpanShape> spans, const RowCost& cost,
                                const SplitOptions& options) {
  double total = 0;
  int64_t rows = 0;
  for (const SpanShape& span : spans) {
    total += cost_of(span.start_position, span.rows, cost);
    rows += span.rows;
  }
  const int64_t parts = std::clamp<int64_t>(options.micro_batches, 1, std::max<int64_t>(rows, 1));
  std::vector<int64_t> borders{0};
  const double share = total / static_cast<double>(parts);
  for (int64_t part = 1; part < parts; ++part) {
    const double target = share * static_cast<double>(part);
    // The sequence that the target falls into, its first row, and the cost before it.
    size_t s = 0;
    int64_t first = 0;
    double before = 0;
    while (s + 1 < spans.size() && before + cost_of(spans[s].start_position, spans[s].rows, cost) < target) {
      before += cost_of(spans[s].start_position, spans[s].rows, cost);
      first += spans[s++].rows;
    }
    const SpanShape& span = spans[s];
    const double after = before + cost_of(span.start_position, span.rows, cost);
    const double allowed = options.imbalance * share;
    const double low = std::abs(target - before), high = std::abs(after - target);
    int64_t border;
    if (std::min(low, high) <= allowed) {
      border = low <= high ? first : first + span.rows;
    } else {
      int64_t lo = 0, hi = span.rows;  // the first row count whose cost reaches the target
      while (lo < hi) {
        const int64_t mid = (lo + hi) / 2;
        if (before + cost_of(span.start_position, mid, cost) < target)
          lo = mid + 1;
        else
          hi = mid;
      }
      border = first + lo;
    }
    // Every part keeps at least one row.
    borders.push_back(std::clamp(border, borders.back() + 1, rows - (parts - part)));
  }
  borders.push_back(rows);
  return borders;
}

bool worth_splitting(int64_t rows, bool has_prefill, const SplitThresholds& thresholds) {
  if (rows < 2) return false;
  return rows >= (has_prefill ? thresholds.prefill_tokens : thresholds.decode_tokens);
}

}  // namespace duet
