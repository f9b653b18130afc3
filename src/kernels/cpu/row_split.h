// Runs a cheap row-wise op over the rows of a batch, on the pool when that pays. Called by the
// norm, RoPE, gate and add ops. A row is always handled whole, by one thread.
#pragma once

#include <algorithm>

#include "kernels/cpu/row_kernels.h"
#include "kernels/ops.h"

namespace duet {

/// body(row) for row in [0, rows). `work` is about the number of elements a row touches: waking
/// the pool costs some 10 µs, which is 32k elements or so.
template <typename Body>
void for_rows(const KernelContext& cx, int64_t rows, int64_t work, const Body& body) {
  constexpr int64_t kWorthWaking = 65536;
  if (!cx.pool || cx.threads() == 1 || rows < 2 || rows * work < kWorthWaking) {
    for (int64_t r = 0; r < rows; ++r) body(r);
    return;
  }
  const int64_t chunk = std::max<int64_t>(1, (rows + cx.threads() * 4 - 1) / (cx.threads() * 4));
  const auto run = [&](int item) {
    const int64_t end = std::min(rows, (item + 1) * chunk);
    for (int64_t r = item * chunk; r < end; ++r) body(r);
  };
  cx.pool->parallel_for(static_cast<int>((rows + chunk - 1) / chunk), [&run](int item, int) { run(item); });
}

}  // namespace duet
