#include "overlap/splitter.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace duet {

namespace {

// Cost of the first `count` rows.
double cost_of(const SpanShape& span, int64_t count) {
  const double n = static_cast<double>(count);
  return n * span.cost.row +
         span.cost.key * (n * (static_cast<double>(span.start_position) + 1.0) + n * (n - 1.0) / 2.0);
}

}  // namespace

std::vector<int64_t> split_rows(std::span<const SpanShape> spans, const SplitOptions& options) {
  double total = 0;
  int64_t rows = 0;
  for (const SpanShape& span : spans) {
    total += cost_of(span, span.rows);
    rows += span.rows;
  }
  const int64_t parts = std::clamp<int64_t>(options.micro_batches, 1, std::max<int64_t>(rows, 1));
  std::vector<double> shares = options.shares;
  if (static_cast<int64_t>(shares.size()) != parts) shares.assign(static_cast<size_t>(parts), 1.0);
  const double all = std::accumulate(shares.begin(), shares.end(), 0.0);
  std::vector<int64_t> borders{0};
  double target = 0;
  for (int64_t part = 1; part < parts; ++part) {
    const double share = total * shares[static_cast<size_t>(part - 1)] / all;
    target += share;
    // The sequence that the target falls into, its first row, and the cost before it.
    size_t s = 0;
    int64_t first = 0;
    double before = 0;
    while (s + 1 < spans.size() && before + cost_of(spans[s], spans[s].rows) < target) {
      before += cost_of(spans[s], spans[s].rows);
      first += spans[s++].rows;
    }
    const SpanShape& span = spans[s];
    const double after = before + cost_of(span, span.rows);
    const double allowed = options.imbalance * share;
    const double low = std::abs(target - before), high = std::abs(after - target);
    int64_t border;
    if (std::min(low, high) <= allowed) {
      border = low <= high ? first : first + span.rows;
    } else {
      int64_t lo = 0, hi = span.rows;  // the first row count whose cost reaches the target
      while (lo < hi) {
        const int64_t mid = (lo + hi) / 2;
        if (before + cost_of(span, mid) < target)
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
