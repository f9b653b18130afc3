#include "engine/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "engine/random.h"
#include "kernels/ops.h"

namespace duet {

namespace {

constexpr float kRuledOut = -std::numeric_limits<float>::infinity();
// A token that is e^-40 times as likely as the likeliest (below float64's resolution of their sum) is
// never drawn: a vocabulary's tail is not worth its exponentials.
constexpr double kNever = -40.0;
constexpr int kBuckets = 60;  // 2^-59 < e^-40

// 0 for the likeliest, n for weights in [2^-n, 2^-(n-1)).
int bucket(double weight) {
  return std::clamp(-std::ilogb(weight), 0, kBuckets - 1);
}

KernelContext context(CpuLevel level) {
  KernelContext cx;
  cx.level = level;
  return cx;
}

// Descending, lowest id first among equals.
template <typename T>
auto by_value(const std::vector<T>& values) {
  return [&values](int32_t a, int32_t b) {
    const T x = values[static_cast<size_t>(a)], y = values[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
}

[[noreturn]] void not_numbers() {
  throw Error(ErrorKind::kInternal,
              "no logit of a row is a number: the weights hold NaN or infinite values, or half-precision "
              "arithmetic overflowed (try --dtype float32)");
}

// No stop token may end the sequence yet.
bool too_early(const ResolvedParams& p, int64_t generated) {
  return generated < p.min_tokens && !p.stop_token_ids.empty();
}

}  // namespace

Sampler::Sampler(int64_t vocab_size, CpuLevel level)
    : level_(level),
      values_(static_cast<size_t>(vocab_size)),
      weights_(static_cast<size_t>(vocab_size)),
      counts_(static_cast<size_t>(vocab_size), 0) {}

void Sampler::penalise(const SampleInput& input) {
  const ResolvedParams& p = *input.params;
  const auto generated = input.tokens.subspan(static_cast<size_t>(input.prompt_tokens));
  for (const int32_t id : generated) ++counts_[static_cast<size_t>(id)];
  // Each token once: −1 marks what is done.
  for (const int32_t id : input.tokens) {
    int32_t& count = counts_[static_cast<size_t>(id)];
    if (count < 0) continue;
    float& value = values_[static_cast<size_t>(id)];
    const float repetition = static_cast<float>(p.repetition_penalty);
    value = value > 0 ? value / repetition : value * repetition;
    value -= static_cast<float>(p.frequency_penalty) * static_cast<float>(count);
    if (count > 0) value -= static_cast<float>(p.presence_penalty);
    count = -1;
  }
  for (const int32_t id : input.tokens) counts_[static_cast<size_t>(id)] = 0;
}

bool Sampler::takes_best(const ResolvedParams& p, int64_t generated) {
  return p.greedy() && !too_early(p, generated) && !p.penalised() && p.logit_bias.empty();
}

int32_t Sampler::take(const BestToken& best) {
  if (best.id < 0 || !(best.logit > kRuledOut)) not_numbers();
  return best.id;
}

// Fills values_ when something changes the row; false: take the row as it is.
bool Sampler::adjust(std::span<const float> logits, const SampleInput& input) {
  const ResolvedParams& p = *input.params;
  const int64_t generated = static_cast<int64_t>(input.tokens.size()) - input.prompt_tokens;
  if (takes_best(p, generated)) return false;
  std::copy(logits.begin(), logits.end(), values_.begin());
  if (too_early(p, generated))
    for (const int32_t id : p.stop_token_ids) values_[static_cast<size_t>(id)] = kRuledOut;
  for (const auto& [id, bias] : p.logit_bias) values_[static_cast<size_t>(id)] += bias;
  if (p.penalised()) penalise(input);
  return true;
}

int32_t Sampler::sample(std::span<const float> logits, const SampleInput& input) {
  DUET_CHECK(logits.size() == values_.size());
  const bool adjusted = adjust(logits, input);
  if (!input.params->greedy()) return draw(input);
  const std::span<const float> row = adjusted ? std::span<const float>(values_) : logits;
  const int64_t best = argmax(context(level_), row);
  if (best < 0 || !(row[static_cast<size_t>(best)] > kRuledOut)) not_numbers();
  return static_cast<int32_t>(best);
}

// Rules tokens out of order_ that are surely not among the `count` likeliest, or not in the smallest
// set of likeliest that reaches `mass`, whichever is asked for (0: not). A vocabulary has 130 000
// entries and a nucleus a few hundred: sorting all of them would cost more than a small model's step.
void Sampler::shrink(size_t count, double mass) {
  // By the weight's binary exponent: all weights lie in (2^-kBuckets, 1].
  std::array<double, kBuckets> sums{};
  std::array<size_t, kBuckets> counts{};
  for (const int32_t id : order_) {
    const auto b = static_cast<size_t>(bucket(weights_[static_cast<size_t>(id)]));
    sums[b] += weights_[static_cast<size_t>(id)];
    ++counts[b];
  }
  size_t tokens = 0;
  double sum = 0.0;
  int last = 0;
  // The margin covers that these sums are taken in another order than the exact ones.
  for (; last + 1 < kBuckets; ++last) {
    sum += sums[static_cast<size_t>(last)];
    tokens += counts[static_cast<size_t>(last)];
    if (tokens >= std::max<size_t>(count, 1) && sum >= mass * (1.0 + 1e-9)) break;
  }
  std::erase_if(order_, [&](int32_t id) { return bucket(weights_[static_cast<size_t>(id)]) > last; });
}

int32_t Sampler::draw(const SampleInput& input) {
  const ResolvedParams& p = *input.params;
  float max = kRuledOut;
  for (const float value : values_) max = value > max ? value : max;
  if (!(max > kRuledOut)) not_numbers();
  if (std::isinf(max))
    return static_cast<int32_t>(std::find(values_.begin(), values_.end(), max) - values_.begin());

  // Weights relative to the likeliest token, whose weight is 1.
  const double scale = 1.0 / p.temperature;
  order_.clear();
  for (size_t i = 0; i < values_.size(); ++i) {
    const double x = (static_cast<double>(values_[i]) - static_cast<double>(max)) * scale;
    if (!(x > kNever)) continue;  // NaN fails the comparison
    weights_[i] = std::exp(x);
    if (weights_[i] >= p.min_p) order_.push_back(static_cast<int32_t>(i));
  }
  const auto better = by_value(weights_);
  if (p.top_k > 0 && static_cast<size_t>(p.top_k) < order_.size()) {
    shrink(static_cast<size_t>(p.top_k), 0.0);
    // Equals of the k-th stay: which of them would go is nobody's business to decide.
    const auto kth = order_.begin() + (p.top_k - 1);
    std::nth_element(order_.begin(), kth, order_.end(), better);
    const double least = weights_[static_cast<size_t>(*kth)];
    std::erase_if(order_, [&](int32_t id) { return weights_[static_cast<size_t>(id)] < least; });
    std::sort(order_.begin(), order_.end());
  }
  if (p.top_p < 1.0) {
    // The smallest set of likeliest tokens that reaches top_p of what is left.
    const double mass = p.top_p * total_weight();
    shrink(0, mass);
    std::sort(order_.begin(), order_.end(), better);
    double before = 0.0;
    size_t kept = 0;
    while (kept < order_.size() && (kept == 0 || before < mass))
      before += weights_[static_cast<size_t>(order_[kept++])];
    order_.resize(kept);
  }
  const double target = uniform_at(p.seed, input.sample, input.tokens.size()) * total_weight();
  double sum = 0.0;
  for (const int32_t id : order_) {
    sum += weights_[static_cast<size_t>(id)];
    if (target < sum) return id;
  }
  return order_.back();  // rounding of the product only
}

double Sampler::total_weight() const {
  double total = 0.0;
  for (const int32_t id : order_) total += weights_[static_cast<size_t>(id)];
  return total;
}

TokenLogprob Sampler::logprobs(std::span<const float> logits, int32_t token, int top) {
  log_softmax(context(level_), logits, values_);
  TokenLogprob out;
  out.token_id = token;
  out.logprob = values_[static_cast<size_t>(token)];
  order_.resize(values_.size());
  std::iota(order_.begin(), order_.end(), 0);
  const auto middle = order_.begin() + std::min<int64_t>(top, static_cast<int64_t>(order_.size()));
  std::partial_sort(order_.begin(), middle, order_.end(), by_value(values_));
  for (auto it = order_.begin(); it != middle; ++it)
    out.top.emplace_back(*it, values_[static_cast<size_t>(*it)]);
  return out;
}

}  // namespace duet
