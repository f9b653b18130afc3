// Latent attention, expanded (prompts) and absorbed (generated tokens), and grouped-query attention. Only
// useful arithmetic counts: the causal triangle, and one expansion per key.
#include <fmt/format.h>

#include <cstring>
#include <numeric>
#include <random>
#include <tuple>

#include "kernels/ref/attention.h"
#include "opcases/parts.h"

namespace duet::opcases {
namespace {

constexpr int kBlock = 16;

struct Step {
  const char* name;
  int64_t rows, spans, start;  // rows of each of the sequences, positions before them
  bool decode;

  int64_t context() const { return start + rows; }
  double seen() const {  // keys, summed over rows
    return static_cast<double>(spans * rows) *
           (static_cast<double>(start) + (static_cast<double>(rows) + 1) / 2);
  }
};
constexpr Step kSteps[] = {
    {"prefill 512", 512, 1, 0, false},      {"prefill 512 after 3584", 512, 1, 3584, false},
    {"prefill 16 x 32", 32, 16, 0, false},  {"decode 16 at 63", 1, 16, 63, true},
    {"decode 1 at 4095", 1, 1, 4095, true}, {"decode 16 at 1023", 1, 16, 1023, true}};
Step small(const Step& s) {
  return {s.name, std::min<int64_t>(s.rows, 21), std::min<int64_t>(s.spans, 3),
          std::min<int64_t>(s.start, 90), s.decode};
}

/// Sequences of one length in a paged cache whose blocks lie shuffled, several sets of them.
struct Cached {
  /// put(values [rows, width], first row of the cache, its rows)
  template <typename Put>
  Cached(DType dtype, const Step& step, int64_t width, int64_t row_bytes, AttentionForm form,
         int64_t at_least, const Put& put) {
    const int64_t blocks = (step.context() + kBlock - 1) / kBlock, rows = step.spans * blocks * kBlock;
    const int64_t one = rows * row_bytes;
    const int64_t sets = at_least / one + 1;
    const std::vector<float> values = random_floats(rows * width, 3, 0.5f);
    bytes = AlignedBuffer(static_cast<size_t>(sets * one));  // as the engine's: with huge pages
    put(values, bytes.data(), rows);
    for (int64_t i = 1; i < sets; ++i)
      std::memcpy(bytes.data() + i * one, bytes.data(), static_cast<size_t>(one));
    table.resize(static_cast<size_t>(sets * step.spans * blocks));
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(5));
    for (int64_t i = 0; i < sets; ++i) {
      auto& list = spans.emplace_back();
      for (int64_t s = 0; s < step.spans; ++s)
        list.push_back(
            {s * step.rows, step.rows, step.start, form, table.data() + (i * step.spans + s) * blocks});
    }
    cache = {bytes.data(), dtype, kBlock};
  }
  std::span<const AttentionSpan> next() { return spans[at++ % spans.size()]; }

  AlignedBuffer bytes;
  std::vector<int32_t> table;
  std::vector<std::vector<AttentionSpan>> spans;
  size_t at = 0;
  PagedCache cache;
};

/// Inputs are rounded to the cache's type on the way; the oracle rounds nothing. With an int8 cache queries
/// and probabilities have 16 bits, 13 for the rotated part.
double allowed_of(DType cache, Rounding rounding) {
  if (cache == DType::kI8) return 1e-3;
  return rounding == Rounding::kNone ? 2e-5 : 2e-2;
}

class MlaCase : public OpCase {
 public:
  MlaCase(const MlaShape& shape, const Step& step, DType dtype, Rounding rounding, int64_t at_least)
      : shape_(shape),
        allowed_(allowed_of(dtype, rounding)),
        q_columns_(shape.heads * (shape.nope + shape.rope)),
        columns_(shape.heads * shape.v),
        rows_(step.rows * step.spans),
        kv_b_(random_floats(shape.heads * (shape.nope + shape.v) * shape.lora, 1, 0.1f)),
        view_{kv_b_.data(), DType::kF32, shape.heads * (shape.nope + shape.v), shape.lora, shape.lora, 1, {}},
        weights_(pack_mla(shape, view_, dtype == DType::kI8 ? DType::kF32 : dtype)),
        cached_(dtype, step, shape.lora + shape.rope, latent_row_bytes(shape, dtype),
                step.decode ? AttentionForm::kAbsorbed : AttentionForm::kExpanded, at_least,
                [&](const std::vector<float>& values, std::byte* to, int64_t rows) {
                  std::vector<int64_t> slots(static_cast<size_t>(rows));
                  std::iota(slots.begin(), slots.end(), 0);
                  const int64_t width = shape.lora + shape.rope;
                  write_latent({}, shape, {values.data(), rows, shape.lora, width},
                               {values.data() + shape.lora, rows, shape.rope, width}, slots,
                               {to, dtype, kBlock});
                }),
        q_(random_floats(rows_ * q_columns_, 2)),
        out_(static_cast<size_t>(rows_ * columns_)) {}
  size_t scratch_bytes(int threads) const override { return mla_scratch_bytes(shape_, threads); }
  void run(const KernelContext& cx) override { run(cx, cached_.next()); }
  double error(const KernelContext& cx) override {
    const std::span<const AttentionSpan> spans = cached_.next();
    run(cx, spans);
    std::vector<float> want(out_.size());
    ref::mla_attention(shape_, view_, {q_.data(), rows_, q_columns_}, cached_.cache, spans,
                       {want.data(), rows_, columns_});
    return relative_error(out_, want, allowed_);
  }

 private:
  void run(const KernelContext& cx, std::span<const AttentionSpan> spans) {
    mla_attention(cx, shape_, weights_, {q_.data(), rows_, q_columns_}, cached_.cache, spans,
                  {out_.data(), rows_, columns_});
  }

  MlaShape shape_;
  double allowed_;
  int64_t q_columns_, columns_, rows_;
  std::vector<float> kv_b_;
  WeightView view_;
  MlaWeights weights_;
  Cached cached_;
  std::vector<float> q_, out_;
};

class GqaCase : public OpCase {
 public:
  GqaCase(const GqaShape& shape, const Step& step, DType dtype, Rounding rounding, int64_t at_least)
      : shape_(shape),
        allowed_(allowed_of(dtype, rounding)),
        columns_(shape.heads * shape.head_dim),
        rows_(step.rows * step.spans),
        cached_(dtype, step, 2 * shape.kv_heads * shape.head_dim,
                2 * shape.kv_heads * shape.head_dim * static_cast<int64_t>(dtype_bytes(dtype)),
                AttentionForm::kExpanded, at_least,
                [&](const std::vector<float>& values, std::byte* to, int64_t) {
                  convert_from_f32(values.data(), dtype, to, values.size());
                }),
        q_(random_floats(rows_ * columns_, 2)),
        out_(q_.size()) {}
  size_t scratch_bytes(int threads) const override { return gqa_scratch_bytes(shape_, threads); }
  void run(const KernelContext& cx) override { run(cx, cached_.next()); }
  double error(const KernelContext& cx) override {
    const std::span<const AttentionSpan> spans = cached_.next();
    run(cx, spans);
    std::vector<float> want(out_.size());
    ref::gqa_attention(shape_, {q_.data(), rows_, columns_}, cached_.cache, spans,
                       {want.data(), rows_, columns_});
    return relative_error(out_, want, allowed_);
  }

 private:
  void run(const KernelContext& cx, std::span<const AttentionSpan> spans) {
    gqa_attention(cx, shape_, {q_.data(), rows_, columns_}, cached_.cache, spans,
                  {out_.data(), rows_, columns_});
  }

  GqaShape shape_;
  double allowed_;
  int64_t columns_, rows_;
  Cached cached_;
  std::vector<float> q_, out_;
};

constexpr MlaShape kLatent{.heads = 16, .nope = 128, .rope = 64, .v = 128, .lora = 512, .scale = 0.07f};
constexpr MlaShape kSmallLatent{.heads = 3, .nope = 16, .rope = 8, .v = 24, .lora = 32, .scale = 0.2f};
constexpr GqaShape kGrouped{.heads = 16, .kv_heads = 8, .head_dim = 128, .scale = 0.088f};
constexpr GqaShape kSmallGrouped{.heads = 6, .kv_heads = 2, .head_dim = 32, .scale = 0.17f};

}  // namespace

void add_attention(std::vector<OpCaseSpec>& cases) {
  for (const bool latent : {true, false}) {
    for (const auto& [dtype, rounding, name] :
         {std::tuple{DType::kF32, Rounding::kNone, "f32"}, std::tuple{DType::kBf16, Rounding::kBf16, "bf16"},
          std::tuple{DType::kI8, Rounding::kNone, "i8"}}) {
      if (dtype == DType::kI8 && !latent) continue;
      for (const Step& step : kSteps) {
        OpCaseSpec spec;
        spec.op = latent ? "mla" : "gqa";
        spec.shape = step.name;
        spec.weights = name;
        spec.rounding = rounding;
        spec.units = dtype == DType::kI8 && step.decode ? Units::kInt8
                     : rounding == Rounding::kBf16      ? Units::kBf16
                                                        : Units::kFloat;
        const MlaShape& m = kLatent;
        const int64_t row_bytes =
            latent ? latent_row_bytes(m, dtype)
                   : 2 * kGrouped.kv_heads * kGrouped.head_dim * static_cast<int64_t>(dtype_bytes(dtype));
        if (latent) {
          const int64_t per_score = step.decode ? 2 * m.lora + m.rope : m.nope + m.rope + m.v;
          const int64_t projected = step.spans * (step.decode ? step.rows : step.context());
          spec.flops = 2.0 * m.heads *
                       (step.seen() * static_cast<double>(per_score) +
                        static_cast<double>(projected * m.lora * (m.nope + m.v)));
        } else {
          spec.flops = 4.0 * kGrouped.heads * kGrouped.head_dim * step.seen();
        }
        if (step.decode) spec.bytes = static_cast<double>(step.spans * step.context() * row_bytes);
        spec.make = [=, type = dtype, round = rounding](CaseSize size) -> std::unique_ptr<OpCase> {
          const bool full = size == CaseSize::kFull;
          const Step& of = full ? step : small(step);
          const int64_t least = full && step.decode ? kColdBytes : 0;
          if (latent) return std::make_unique<MlaCase>(full ? kLatent : kSmallLatent, of, type, round, least);
          return std::make_unique<GqaCase>(full ? kGrouped : kSmallGrouped, of, type, round, least);
        };
        cases.push_back(spec);
      }
    }
  }
}

}  // namespace duet::opcases
