// Operations on rows, whose operands the products beside them leave in a cache.
#include <fmt/format.h>

#include <numeric>

#include "kernels/ref/row_ops.h"
#include "opcases/parts.h"

namespace duet::opcases {
namespace {

class NormCase : public OpCase {
 public:
  NormCase(int64_t rows, int64_t columns)
      : rows_(rows),
        columns_(columns),
        x_(random_floats(rows * columns, 1)),
        weight_(random_floats(columns, 2)),
        out_(x_.size()) {}
  size_t scratch_bytes(int) const override { return 0; }
  void run(const KernelContext& cx) override {
    rms_norm(cx, {x_.data(), rows_, columns_}, weight_, 1e-6f, {out_.data(), rows_, columns_});
  }
  double error(const KernelContext& cx) override {
    run(cx);
    std::vector<float> want(out_.size());
    ref::rms_norm({x_.data(), rows_, columns_}, weight_, 1e-6f, {want.data(), rows_, columns_});
    return relative_error(out_, want, 1e-5);
  }

 private:
  int64_t rows_, columns_;
  std::vector<float> x_, weight_, out_;
};

/// Queries of 16 heads of 192, of which the last 64 turn.
class RopeCase : public OpCase {
 public:
  RopeCase(int64_t rows, bool halves) : rows_(rows), halves_(halves), x_(random_floats(rows * kColumns, 1)) {
    table_.positions = rows;
    table_.half = 32;
    for (int64_t i = 0; i < rows * table_.half; ++i) {
      table_.cos.push_back(std::cos(0.1f * static_cast<float>(i)));
      table_.sin.push_back(std::sin(0.1f * static_cast<float>(i)));
    }
    positions_.resize(static_cast<size_t>(rows));
    std::iota(positions_.begin(), positions_.end(), 0);
  }
  size_t scratch_bytes(int) const override { return 0; }
  void run(const KernelContext& cx) override {
    const Rows x{x_.data(), rows_, kColumns};
    if (halves_)
      rope_halves(cx, x, kHeads, kHead, kHead - 64, positions_, table_);
    else
      rope_interleaved(cx, x, kHeads, kHead, kHead - 64, positions_, table_);
  }
  double error(const KernelContext& cx) override {
    std::vector<float> want = x_;
    run(cx);
    const Rows x{want.data(), rows_, kColumns};
    if (halves_)
      ref::rope_halves(x, kHeads, kHead, kHead - 64, positions_, table_);
    else
      ref::rope_interleaved(x, kHeads, kHead, kHead - 64, positions_, table_);
    return relative_error(x_, want, 1e-6);
  }

 private:
  static constexpr int kHeads = 16;
  static constexpr int64_t kHead = 192, kColumns = kHeads * kHead;
  int64_t rows_;
  bool halves_;
  std::vector<float> x_;
  std::vector<int32_t> positions_;
  RopeTable table_;
};

class GateCase : public OpCase {
 public:
  explicit GateCase(int64_t tokens)
      : tokens_(tokens),
        logits_(random_floats(tokens * kExperts, 1, 3.0f)),
        ids_(count()),
        weights_(count()) {
    params_.experts = kExperts;
    params_.top_k = 6;
  }
  size_t scratch_bytes(int) const override { return 1 << 16; }
  void run(const KernelContext& cx) override {
    gate_top_k(cx, {logits_.data(), tokens_, kExperts}, params_, {}, ids_.data(), weights_.data());
  }
  double error(const KernelContext& cx) override {
    run(cx);
    std::vector<int32_t> ids(ids_.size());
    std::vector<float> want(weights_.size());
    ref::gate_top_k({logits_.data(), tokens_, kExperts}, params_, {}, ids.data(), want.data());
    return ids == ids_ ? relative_error(weights_, want, 1e-5) : INFINITY;
  }

 private:
  static constexpr int kExperts = 64;
  size_t count() const { return static_cast<size_t>(tokens_ * 6); }
  int64_t tokens_;
  GateParams params_;
  std::vector<float> logits_;
  std::vector<int32_t> ids_;
  std::vector<float> weights_;
};

template <typename Case, typename... Args>
void add(std::vector<OpCaseSpec>& cases, const char* op, const std::string& shape, double touched,
         int64_t rows, Args... args) {
  OpCaseSpec spec;
  spec.op = op;
  spec.shape = shape;
  spec.weights = "f32";
  spec.touched = touched;
  spec.make = [=](CaseSize size) -> std::unique_ptr<OpCase> {
    return std::make_unique<Case>(size == CaseSize::kSmall ? std::min<int64_t>(rows, 7) : rows, args...);
  };
  cases.push_back(spec);
}

}  // namespace

void add_row_ops(std::vector<OpCaseSpec>& cases) {
  for (const int64_t rows : {1, 512}) {
    const auto r = static_cast<double>(rows);
    add<NormCase>(cases, "rms_norm", fmt::format("{} x 1024", rows), r * 1024 * 8, rows, int64_t{1024});
    add<RopeCase>(cases, "rope", fmt::format("{} x 16 heads, interleaved", rows), r * 16 * 64 * 8, rows,
                  false);
    add<RopeCase>(cases, "rope", fmt::format("{} x 16 heads, halves", rows), r * 16 * 64 * 8, rows, true);
    add<GateCase>(cases, "gate", fmt::format("{} x 64, 6 of them", rows), r * 64 * 4, rows);
  }
}

}  // namespace duet::opcases
