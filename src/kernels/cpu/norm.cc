#include "kernels/cpu/row_split.h"

namespace duet {

void rms_norm(const KernelContext& cx, ConstRows x, std::span<const float> weight, float eps, Rows out) {
  DUET_CHECK(static_cast<int64_t>(weight.size()) == x.cols && out.rows == x.rows && out.cols == x.cols);
  const RowKernels& kernels = row_kernels(cx.level);
  for_rows(cx, x.rows, x.cols,
           [&](int64_t r) { kernels.rms_norm(x.row(r), weight.data(), eps, x.cols, out.row(r)); });
}

}  // namespace duet
