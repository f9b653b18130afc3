// One layer's experts, grouped: few tokens read weights, many multiply.
#include <fmt/format.h>

#include "kernels/ref/gemm.h"
#include "opcases/parts.h"

namespace duet::opcases {
namespace {

struct Sizes {
  int64_t hidden, intermediate;
  int experts, top_k;
};
constexpr Sizes kFull{1024, 704, 32, 6}, kSmall{96, 48, 5, 2};

class ExpertsCase : public OpCase {
 public:
  ExpertsCase(const Sizes& s, int64_t tokens, const Format& format, int64_t copies)
      : s_(s),
        tokens_(tokens),
        format_(format),
        gate_(s.intermediate, s.hidden, format, 1),
        up_(s.intermediate, s.hidden, format, 2),
        down_(s.hidden, s.intermediate, format, 3),
        x_(random_floats(tokens * s.hidden, 4)),
        out_(x_.size()),
        gate_weights_(static_cast<size_t>(tokens * s.top_k), 0.2f) {
    for (int64_t i = 0; i < copies * s.experts; ++i)
      weights_.push_back(pack_mlp(gate_.view, up_.view, down_.view, format.as));
  }
  size_t scratch_bytes(int threads) const override {
    return experts_scratch_bytes(s_.hidden, s_.intermediate, threads);
  }
  void run(const KernelContext& cx) override {
    group();
    const size_t layer = runs_++ % (weights_.size() / static_cast<size_t>(s_.experts));
    experts(
        cx, {x_.data(), tokens_, s_.hidden},
        std::span(weights_).subspan(layer * static_cast<size_t>(s_.experts), static_cast<size_t>(s_.experts)),
        groups_, {out_.data(), tokens_, s_.hidden});
  }
  double error(const KernelContext& cx) override {
    std::fill(out_.begin(), out_.end(), 0.25f);
    std::vector<float> want = out_;
    run(cx);
    const std::vector<ref::ExpertViews> views(static_cast<size_t>(s_.experts),
                                              {gate_.view, up_.view, down_.view});
    ref::experts(format_.rounding, {x_.data(), tokens_, s_.hidden}, views, groups_, format_.as,
                 {want.data(), tokens_, s_.hidden});
    // An activation whose rounding falls the other way moves an output by that much of one product.
    const double allowed = format_.as.inputs == Inputs::kInt8    ? 1e-2
                           : format_.rounding == Rounding::kBf16 ? 5e-3
                           : format_.rounding == Rounding::kF16  ? 1e-3
                                                                 : 1e-5;
    return relative_error(out_, want, allowed);
  }

 private:
  /// Neighbouring tokens go to other experts, and so does each run.
  void group() {
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < tokens_; ++t)
      for (int j = 0; j < s_.top_k; ++j)
        ids.push_back(static_cast<int32_t>((runs_ * 7 + t * s_.top_k + j) % s_.experts));
    offsets_.resize(static_cast<size_t>(s_.experts) + 1);
    rows_.resize(ids.size());
    sorted_.resize(ids.size());
    groups_ = group_by_expert(ids.data(), gate_weights_.data(), tokens_, s_.top_k, 0, s_.experts,
                              offsets_.data(), rows_.data(), sorted_.data());
  }

  Sizes s_;
  int64_t tokens_, runs_ = 0;
  Format format_;
  Weights gate_, up_, down_;
  std::vector<MlpWeights> weights_;  // [copies, experts]
  std::vector<float> x_, out_, gate_weights_, sorted_;
  std::vector<int32_t> offsets_, rows_;
  ExpertGroups groups_;
};

}  // namespace

void add_feed_forward(std::vector<OpCaseSpec>& cases) {
  for (const Format& format : formats()) {
    if (format.as.inputs == Inputs::kInt16) continue;  // for heads and latents alone
    for (const int64_t tokens : {1, 16, 512}) {
      const Sizes& s = kFull;
      OpCaseSpec spec;
      spec.op = "experts";
      spec.shape = fmt::format("{} token{}, {} of {}, {} x {}", tokens, tokens == 1 ? "" : "s", s.top_k,
                               s.experts, s.hidden, s.intermediate);
      spec.weights = format.name;
      spec.rounding = format.rounding;
      spec.units = format.units;
      spec.flops = 6.0 * static_cast<double>(tokens * s.top_k * s.hidden * s.intermediate);
      const auto bytes = static_cast<int64_t>(packed_bytes(2 * s.intermediate, s.hidden, format.as.dtype) +
                                              packed_bytes(s.hidden, s.intermediate, format.as.dtype));
      spec.bytes = static_cast<double>(std::min<int64_t>(tokens * s.top_k, s.experts) * bytes);
      spec.make = [=](CaseSize size) -> std::unique_ptr<OpCase> {
        if (size == CaseSize::kSmall)
          return std::make_unique<ExpertsCase>(kSmall, std::min<int64_t>(tokens, 23), format, 1);
        return std::make_unique<ExpertsCase>(kFull, tokens, format, kColdBytes / (bytes * kFull.experts) + 1);
      };
      cases.push_back(spec);
    }
  }
}

}  // namespace duet::opcases
