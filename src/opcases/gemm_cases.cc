// Matrix products: many rows with the weights in a cache (arithmetic is the limit), few with weights that
// come from memory.
#include <fmt/format.h>

#include "kernels/ref/gemm.h"
#include "opcases/library.h"
#include "opcases/parts.h"

namespace duet::opcases {
namespace {

class GemmCase : public OpCase {
 public:
  GemmCase(int64_t m, int64_t n, int64_t k, const Format& format, int64_t copies)
      : m_(m),
        n_(n),
        k_(k),
        format_(format),
        weights_(n, k, format, 1),
        a_(random_floats(m * k, 2)),
        c_(static_cast<size_t>(m * n)) {
    for (int64_t i = 0; i < copies; ++i) packed_.emplace_back(weights_.view, format.as);
  }
  size_t scratch_bytes(int threads) const override { return gemm_scratch_bytes(m_, n_, k_, threads); }
  void run(const KernelContext& cx) override {
    gemm(cx, {a_.data(), m_, k_}, packed_[next_++ % packed_.size()].view(), {c_.data(), m_, n_});
  }
  double error(const KernelContext& cx) override {
    run(cx);
    std::vector<float> want(c_.size());
    ref::gemm(format_.rounding, {a_.data(), m_, k_}, weights_.view, format_.as, {want.data(), m_, n_});
    double worst = 0;
    for (int64_t i = 0; i < m_; ++i) {
      const std::vector<double> x =
          ref::input_row(a_.data() + i * k_, k_, format_.rounding, format_.as.inputs);
      for (int64_t j = 0; j < n_; ++j) {
        // Roundings of a product on its way: its chain, the chains of its block or piece, the blocks. Of
        // integers, whose sums are exact, the last multiplications.
        const double roundings = format_.as.inputs == Inputs::kInt8 ? 5 : 2 * 64 + 32 + k_ / 12.0 + 4;
        const std::vector<double> row = ref::weight_row(weights_.view, j, format_.as);
        double size = 1e-30;
        for (size_t k = 0; k < x.size(); ++k) size += std::abs(x[k] * row[k]);
        const auto at = static_cast<size_t>(i * n_ + j);
        const double difference = std::abs(static_cast<double>(c_[at]) - static_cast<double>(want[at]));
        worst =
            std::max(worst, std::isnan(difference) ? INFINITY : difference / (roundings * 0x1p-24 * size));
      }
    }
    return worst;
  }
  bool run_library() override {
    return format_.as.dtype == DType::kF32 &&
           library_sgemm(m_, n_, k_, a_.data(), weights_.floats.data(), c_.data());
  }

 private:
  int64_t m_, n_, k_;
  Format format_;
  Weights weights_;
  std::vector<PackedMatrix> packed_;
  size_t next_ = 0;
  std::vector<float> a_, c_;
};

}  // namespace

void add_gemm(std::vector<OpCaseSpec>& cases) {
  for (const Format& format : formats()) {
    for (const int64_t m : {1, 4, 16, 64, 512}) {
      const bool cold = m <= 16;
      const int64_t n = cold ? 2048 : 1024, k = n;
      OpCaseSpec spec;
      spec.op = "gemm";
      spec.shape = fmt::format("{} x {} x {}{}", m, n, k, cold ? " cold" : "");
      spec.weights = format.name;
      spec.rounding = format.rounding;
      spec.units = format.units;
      spec.flops = 2.0 * static_cast<double>(m * n * k);
      const auto bytes = static_cast<int64_t>(packed_bytes(n, k, format.as.dtype));
      if (cold) spec.bytes = static_cast<double>(bytes);
      spec.make = [=](CaseSize size) -> std::unique_ptr<OpCase> {
        if (size == CaseSize::kSmall)
          return std::make_unique<GemmCase>(std::min<int64_t>(m, 37), 83, 204, format, 1);
        return std::make_unique<GemmCase>(m, n, k, format, cold ? kColdBytes / bytes + 1 : 1);
      };
      cases.push_back(spec);
    }
  }
}

}  // namespace duet::opcases
