#include <cmath>

#include "kernels/cpu/row_split.h"

namespace duet {

void add_rows(const KernelContext& cx, ConstRows x, Rows out) {
  DUET_CHECK(x.rows == out.rows && x.cols == out.cols);
  const RowKernels& kernels = row_kernels(cx.level);
  for_rows(cx, x.rows, x.cols, [&](int64_t r) { kernels.add(x.row(r), out.row(r), x.cols); });
}

void add_bias(const KernelContext& cx, std::span<const float> bias, Rows out) {
  DUET_CHECK(static_cast<int64_t>(bias.size()) == out.cols);
  const RowKernels& kernels = row_kernels(cx.level);
  for_rows(cx, out.rows, out.cols, [&](int64_t r) { kernels.add(bias.data(), out.row(r), out.cols); });
}

int64_t argmax(const KernelContext& cx, std::span<const float> values) {
  const float best = row_kernels(cx.level).max(values.data(), static_cast<int64_t>(values.size()));
  // -infinity is also what max says when there is nothing but NaN; then no element equals it.
  const auto at = std::find(values.begin(), values.end(), best);
  return at == values.end() ? -1 : at - values.begin();
}

void log_softmax(const KernelContext& cx, std::span<const float> values, std::span<float> out) {
  DUET_CHECK(out.size() == values.size());
  const RowKernels& kernels = row_kernels(cx.level);
  const auto n = static_cast<int64_t>(values.size());
  const float best = kernels.max(values.data(), n);
  double sum = 0.0;
  constexpr int64_t kPiece = 512;
  float piece[kPiece];
  for (int64_t i = 0; i < n; i += kPiece) {
    const int64_t count = std::min(kPiece, n - i);
    kernels.exp(values.data() + i, best, count, piece);
    for (int64_t j = 0; j < count; ++j) sum += static_cast<double>(piece[j]);
  }
  const double log_sum = static_cast<double>(best) + std::log(sum);
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = static_cast<float>(static_cast<double>(values[i]) - log_sum);
  }
}

}  // namespace duet
