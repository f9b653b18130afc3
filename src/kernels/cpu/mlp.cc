#include <algorithm>
#include <cstring>

#include "kernels/cpu/ffn.h"
#include "kernels/cpu/gemm_block.h"
#include "kernels/ops.h"

namespace duet {
namespace {

constexpr int64_t kChunkRows = gemm_detail::kBlockRows;

}  // namespace

MlpWeights pack_mlp(const WeightView& gate, const WeightView& up, const WeightView& down, PackAs as) {
  return pack_mlp(gate, up, down, as, as);
}

MlpWeights pack_mlp(const WeightView& gate, const WeightView& up, const WeightView& down, PackAs gate_up_as,
                    PackAs down_as) {
  DUET_CHECK(gate.rows == up.rows && gate.cols == up.cols && down.cols == gate.rows &&
             down.rows == gate.cols);
  MlpWeights w;
  w.hidden = down.rows;
  w.intermediate = gate.rows;
  if (w.intermediate == 0) return w;
  // A panel of gates, the panel of the same ups, and so on: one tile yields both factors. The last
  // panel of each is filled up with zero columns, which give silu(0) · 0 = 0.
  static constexpr float kZero = 0.0f;
  std::vector<WeightView> parts;
  for (int64_t i = 0; i < w.intermediate; i += kPanelColumns) {
    const int64_t count = std::min(kPanelColumns, w.intermediate - i);
    const WeightView fill{&kZero, DType::kF32, kPanelColumns - count, gate.cols, 0, 0, {}};
    parts.push_back(row_range(gate, i, count));
    parts.push_back(fill);
    parts.push_back(row_range(up, i, count));
    parts.push_back(fill);
  }
  w.gate_up = PackedMatrix(parts, gate_up_as);
  w.down = PackedMatrix(down, down_as);
  return w;
}

void mlp(const KernelContext& cx, ConstRows x, const MlpWeights& w, Rows out, Accumulate accumulate) {
  DUET_CHECK(x.cols == w.hidden && out.cols == w.hidden && x.rows == out.rows);
  if (w.intermediate == 0) {
    if (accumulate == Accumulate::kYes) return;
    for (int64_t r = 0; r < out.rows; ++r) std::fill_n(out.row(r), out.cols, 0.0f);
    return;
  }
  ArenaScope scope(*cx.scratch);
  const int64_t most = std::min(x.rows, kChunkRows);
  const auto scratch = ffn_detail::take_scratch(*cx.scratch, most, w.hidden, w.intermediate, cx.threads());
  for (int64_t m = 0; m < x.rows; m += kChunkRows) {
    const int64_t rows = std::min(kChunkRows, x.rows - m);
    scratch.segments[0] = {&w, 0, rows, nullptr, nullptr, 0};
    ffn_detail::run_group(cx, x.row_slice(m, rows), scratch, 1, out.row_slice(m, rows), accumulate);
  }
}

size_t mlp_scratch_bytes(int64_t hidden, int64_t intermediate, int threads) {
  return ffn_detail::scratch_bytes(kChunkRows, hidden, intermediate, threads);
}

}  // namespace duet
