#include <algorithm>

#include "kernels/cpu/ffn.h"
#include "kernels/cpu/gemm_block.h"
#include "kernels/ops.h"

namespace duet {
namespace {

constexpr int64_t kGroupRows = gemm_detail::kBlockRows;

}  // namespace

ExpertGroups group_by_expert(const int32_t* ids, const float* gate_weights, int64_t tokens, int top_k,
                             int32_t first, int32_t experts, int32_t* offsets, int32_t* rows,
                             float* weights) {
  const int64_t entries = tokens * top_k;
  const auto local = [&](int64_t i) -> int64_t {
    const int64_t id = static_cast<int64_t>(ids[i]) - first;
    return ids[i] >= 0 && id >= 0 && id < experts ? id : -1;
  };
  // Counting sort: offsets[e] counts, then becomes the place of the next entry, then the end of e.
  std::fill_n(offsets, static_cast<size_t>(experts) + 1, 0);
  for (int64_t i = 0; i < entries; ++i) {
    if (local(i) >= 0) ++offsets[local(i)];
  }
  int32_t sum = 0;
  for (int32_t e = 0; e <= experts; ++e) {
    const int32_t count = offsets[e];
    offsets[e] = sum;
    sum += count;
  }
  for (int64_t i = 0; i < entries; ++i) {
    const int64_t e = local(i);
    if (e < 0) continue;
    rows[offsets[e]] = static_cast<int32_t>(i / top_k);
    weights[offsets[e]++] = gate_weights[i];
  }
  std::copy_backward(offsets, offsets + experts, offsets + experts + 1);
  offsets[0] = 0;
  return {{offsets, static_cast<size_t>(experts) + 1},
          {rows, static_cast<size_t>(sum)},
          {weights, static_cast<size_t>(sum)}};
}

void experts(const KernelContext& cx, ConstRows x, std::span<const MlpWeights> experts,
             const ExpertGroups& groups, Rows out) {
  DUET_CHECK(groups.offsets.size() == experts.size() + 1 && x.cols == out.cols);
  int64_t widest = 0;
  for (const MlpWeights& w : experts) widest = std::max(widest, w.intermediate);
  if (widest == 0 || groups.rows.empty()) return;
  ArenaScope scope(*cx.scratch);
  const int64_t most = std::min(static_cast<int64_t>(groups.rows.size()), kGroupRows);
  const auto scratch = ffn_detail::take_scratch(*cx.scratch, most, x.cols, widest, cx.threads());
  // Experts in order, cut and gathered into groups of rows that fit the scratch.
  int64_t count = 0;
  int64_t used = 0;
  const auto flush = [&] {
    if (count > 0) ffn_detail::run_group(cx, x, scratch, count, out, Accumulate::kYes);
    count = 0;
    used = 0;
  };
  for (size_t e = 0; e < experts.size(); ++e) {
    if (experts[e].intermediate == 0) continue;
    DUET_CHECK(experts[e].hidden == x.cols);
    // An expert that still fits one group is not cut: its weights are read once.
    if (groups.offsets[e + 1] - groups.offsets[e] > kGroupRows - used) flush();
    for (int64_t i = groups.offsets[e]; i < groups.offsets[e + 1];) {
      const int64_t rows = std::min<int64_t>(groups.offsets[e + 1] - i, kGroupRows - used);
      scratch.segments[count++] = {&experts[e],
                                   used,
                                   rows,
                                   &groups.rows[static_cast<size_t>(i)],
                                   &groups.weights[static_cast<size_t>(i)],
                                   0};
      used += rows;
      i += rows;
      if (used == kGroupRows) flush();
    }
  }
  flush();
}

size_t experts_scratch_bytes(int64_t hidden, int64_t intermediate, int threads) {
  return ffn_detail::scratch_bytes(kGroupRows, hidden, intermediate, threads);
}

}  // namespace duet
