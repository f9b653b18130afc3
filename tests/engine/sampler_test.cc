#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "base/error.h"
#include "engine/random.h"

namespace duet {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(Random, PhiloxKnownAnswers) {  // of the authors' Random123
  using C = std::array<uint32_t, 4>;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (C{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (C{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (C{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Random, EveryPartOfTheKeyMatters) {
  std::set<double> seen;
  for (uint64_t seed : {0ull, 1ull, 1ull << 32})
    for (uint32_t sample : {0u, 1u})
      for (uint64_t position : {0ull, 1ull, 1ull << 32}) seen.insert(uniform_at(seed, sample, position));
  EXPECT_EQ(seen.size(), 18u);
  EXPECT_EQ(uniform_at(5, 1, 9), uniform_at(5, 1, 9));
  for (double u : seen) EXPECT_TRUE(u >= 0 && u < 1);
  EXPECT_NE(derive_seed(0, 0), derive_seed(0, 1));
  EXPECT_NE(derive_seed(0, 0), derive_seed(1, 0));
}

// The distribution that the parameters ask for, slowly: vLLM's operations one after the other.
std::vector<double> oracle(std::vector<double> logits, const ResolvedParams& p) {
  const size_t n = logits.size();
  auto softmax = [&](const std::vector<double>& x) {
    const double max = *std::max_element(x.begin(), x.end());
    std::vector<double> e(n);
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += e[i] = std::exp(x[i] - max);
    for (double& v : e) v /= sum;
    return e;
  };
  for (double& x : logits) x /= p.temperature;
  std::vector<double> probs = softmax(logits);
  const double best = *std::max_element(probs.begin(), probs.end());
  for (size_t i = 0; i < n; ++i)
    if (probs[i] < p.min_p * best) logits[i] = -INFINITY;
  if (p.top_k > 0 && p.top_k < static_cast<int64_t>(n)) {
    std::vector<double> sorted = logits;
    std::sort(sorted.rbegin(), sorted.rend());
    const double kth = sorted[static_cast<size_t>(p.top_k - 1)];
    for (double& x : logits)
      if (x < kth) x = -INFINITY;
  }
  probs = softmax(logits);
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return probs[a] > probs[b]; });
  double above = 0;
  for (size_t rank = 0; rank < n; ++rank) {
    const double mass = probs[order[rank]];
    if (rank > 0 && above >= p.top_p) logits[order[rank]] = -INFINITY;
    above += mass;
  }
  return softmax(logits);
}

std::vector<float> random_logits(size_t n, uint32_t seed, float spread = 2.0f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(n);
  for (float& x : logits) x = normal(rng);
  return logits;
}

class Distribution : public ::testing::TestWithParam<ResolvedParams> {};

TEST_P(Distribution, MatchesTheOracle) {
  constexpr int kDraws = 20000;
  const ResolvedParams params = GetParam();
  const std::vector<float> logits = random_logits(40, 11);
  const std::vector<double> expected = oracle({logits.begin(), logits.end()}, params);
  Sampler sampler(40, active_cpu_level());
  std::vector<int32_t> tokens;
  std::vector<int> counts(40, 0);
  for (int i = 0; i < kDraws; ++i) {
    ++counts[static_cast<size_t>(sampler.sample(logits, {&params, tokens, 0, 0}))];
    tokens.push_back(0);  // another position, another draw
  }
  double chi2 = 0;
  int cells = 0;
  for (size_t i = 0; i < 40; ++i) {
    const double e = expected[i] * kDraws;
    if (expected[i] == 0) {
      EXPECT_EQ(counts[i], 0) << "token " << i << " is ruled out";
    }
    if (e < 5) continue;
    chi2 += (counts[i] - e) * (counts[i] - e) / e;
    ++cells;
  }
  // Mean `cells`, deviation √(2 cells): five deviations, and the seeds are fixed.
  EXPECT_LT(chi2, cells + 5 * std::sqrt(2.0 * cells)) << cells << " cells";
}

ResolvedParams make(double temperature, double top_p, int64_t top_k, double min_p) {
  ResolvedParams p;
  p.temperature = temperature;
  p.top_p = top_p;
  p.top_k = top_k;
  p.min_p = min_p;
  p.seed = 99;
  return p;
}

INSTANTIATE_TEST_SUITE_P(Sampler, Distribution,
                         ::testing::Values(make(1, 1, 0, 0), make(0.6, 0.95, 0, 0), make(2.5, 1, 0, 0),
                                           make(1, 1, 5, 0), make(1, 0.5, 0, 0), make(1, 1, 0, 0.2),
                                           make(1.3, 0.7, 12, 0.02), make(1, 1e-9, 0, 0), make(1, 1, 1, 0),
                                           make(1, 1, 0, 1)));

TEST(Sampler, TheKeptSetIsTheOraclesForManyRows) {
  std::mt19937 rng(3);
  for (int round = 0; round < 200; ++round) {
    const ResolvedParams p =
        make(std::uniform_real_distribution<>(0.3, 3)(rng), std::uniform_real_distribution<>(0.05, 1)(rng),
             std::uniform_int_distribution<>(0, 12)(rng), std::uniform_real_distribution<>(0, 0.3)(rng));
    const auto logits = random_logits(25, static_cast<uint32_t>(round));
    const auto expected = oracle({logits.begin(), logits.end()}, p);
    Sampler sampler(25, active_cpu_level());
    std::vector<int32_t> tokens;
    for (int i = 0; i < 50; ++i, tokens.push_back(1))
      ASSERT_GT(expected[static_cast<size_t>(sampler.sample(logits, {&p, tokens, 0, 0}))], 0)
          << "round " << round;
  }
}

TEST(Sampler, ALargeVocabularyKeepsTheOraclesSet) {
  constexpr size_t kVocab = 3000;
  std::vector<int32_t> tokens;
  for (const ResolvedParams& p : {make(1, 0.9, 0, 0), make(0.6, 0.95, 0, 0), make(2, 0.5, 40, 0),
                                  make(1, 1, 700, 0), make(3, 0.999, 0, 0.01)}) {
    const auto logits = random_logits(kVocab, 8, 3.0f);
    const auto expected = oracle({logits.begin(), logits.end()}, p);
    Sampler sampler(kVocab, active_cpu_level());
    double mean = 0, expected_mean = 0, variance = 0;
    for (int i = 0; i < 2000; ++i, tokens.push_back(1)) {
      const int32_t id = sampler.sample(logits, {&p, tokens, 0, 0});
      ASSERT_GT(expected[static_cast<size_t>(id)], 0);
      mean += logits[static_cast<size_t>(id)] / 2000.0;
    }
    for (size_t i = 0; i < kVocab; ++i) expected_mean += expected[i] * logits[i];
    for (size_t i = 0; i < kVocab; ++i) variance += expected[i] * std::pow(logits[i] - expected_mean, 2);
    EXPECT_NEAR(mean, expected_mean, 5 * std::sqrt(variance / 2000));  // five deviations of the mean
  }
}

TEST(Sampler, GreedyTakesTheLowestOfEquals) {
  ResolvedParams p;
  p.temperature = 0;
  Sampler sampler(5, active_cpu_level());
  const std::vector<int32_t> tokens{1, 2};
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 3, 2, 3, 3}, {&p, tokens, 2, 0}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{NAN, -3, NAN, -4, -5}, {&p, tokens, 2, 0}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 3, kInf, 3, 3}, {&p, tokens, 2, 0}), 2);
}

TEST(Sampler, EqualsOfTheKthStay) {
  const ResolvedParams p = make(1, 1, 2, 0);
  Sampler sampler(5, active_cpu_level());
  std::vector<int32_t> tokens;
  std::set<int32_t> seen;
  for (int i = 0; i < 200; ++i, tokens.push_back(0))
    seen.insert(sampler.sample(std::vector<float>{1, 1, 0, 1, -1}, {&p, tokens, 0, 0}));
  EXPECT_EQ(seen, (std::set<int32_t>{0, 1, 3}));
}

TEST(Sampler, OddRowsAreHandled) {
  const ResolvedParams p = make(1, 0.9, 3, 0.01);
  Sampler sampler(4, active_cpu_level());
  const std::vector<int32_t> tokens{1};
  EXPECT_EQ(sampler.sample(std::vector<float>{-kInf, -kInf, 5, -kInf}, {&p, tokens, 1, 0}), 2);
  EXPECT_EQ(sampler.sample(std::vector<float>{NAN, NAN, 5, NAN}, {&p, tokens, 1, 0}), 2);
  EXPECT_EQ(sampler.sample(std::vector<float>{0, kInf, 5, 1}, {&p, tokens, 1, 0}), 1);
  const std::vector<float> huge{3e38f, -3e38f, 2.9e38f, 0};
  EXPECT_EQ(sampler.sample(huge, {&p, tokens, 1, 0}), 0);
  for (const float bad : {NAN, -kInf}) {
    const std::vector<float> row(4, bad);
    EXPECT_THROW(sampler.sample(row, {&p, tokens, 1, 0}), Error);
    ResolvedParams greedy = p;
    greedy.temperature = 0;
    EXPECT_THROW(sampler.sample(row, {&greedy, tokens, 1, 0}), Error);
  }
}

TEST(Sampler, NoStopTokenBeforeMinTokens) {
  ResolvedParams p;
  p.temperature = 0;
  p.min_tokens = 2;
  p.stop_token_ids = {1, 3};
  Sampler sampler(4, active_cpu_level());
  const std::vector<float> logits{0, 5, 1, 4};
  const std::vector<int32_t> tokens{0, 0, 2, 2, 2};
  const std::span<const int32_t> all(tokens);
  EXPECT_EQ(sampler.sample(logits, {&p, all.first(2), 2, 0}), 2);
  EXPECT_EQ(sampler.sample(logits, {&p, all.first(3), 2, 0}), 2);
  EXPECT_EQ(sampler.sample(logits, {&p, all.first(4), 2, 0}), 1);
}

TEST(Sampler, PenaltiesMatchTheirFormulas) {
  ResolvedParams p;
  p.temperature = 0;
  Sampler sampler(4, active_cpu_level());
  // Prompt {0}, generated {1, 1}: token 2 is the only one never seen but 3.
  const std::vector<int32_t> tokens{0, 1, 1};
  const SampleInput input{&p, tokens, 1, 0};
  p.repetition_penalty = 2;  // prompt and generated: 4 → 2, 3.9 → 1.95
  EXPECT_EQ(sampler.sample(std::vector<float>{4, 3.9f, 2.1f, -9}, input), 2);
  EXPECT_EQ(sampler.sample(std::vector<float>{4, 3.9f, 1.9f, -9}, input), 0);
  EXPECT_EQ(sampler.sample(std::vector<float>{-1, -1, -1.9f, -9}, input), 2);  // negative: −1 → −2
  p.repetition_penalty = 1;
  p.presence_penalty = 1;  // generated only, once
  EXPECT_EQ(sampler.sample(std::vector<float>{2.5f, 3.4f, 0, 0}, input), 0);
  EXPECT_EQ(sampler.sample(std::vector<float>{2.5f, 3.6f, 0, 0}, input), 1);
  p.presence_penalty = 0;
  p.frequency_penalty = 1;  // twice
  EXPECT_EQ(sampler.sample(std::vector<float>{2.5f, 4.4f, 0, 0}, input), 0);
  EXPECT_EQ(sampler.sample(std::vector<float>{2.5f, 4.6f, 0, 0}, input), 1);
  p.frequency_penalty = 0;  // nothing is left behind
  EXPECT_EQ(sampler.sample(std::vector<float>{4, 3.9f, 3.95f, 0}, input), 0);
}

TEST(Sampler, LogprobsAreTheRawLogSoftmax) {
  const auto logits = random_logits(30, 4);
  Sampler sampler(30, active_cpu_level());
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x));
  const TokenLogprob lp = sampler.logprobs(logits, 7, 5);
  EXPECT_EQ(lp.token_id, 7);
  EXPECT_NEAR(lp.logprob, logits[7] - std::log(sum), 1e-5);
  ASSERT_EQ(lp.top.size(), 5u);
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_NEAR(lp.top[i].second, logits[static_cast<size_t>(lp.top[i].first)] - std::log(sum), 1e-5);
    if (i > 0) {
      EXPECT_GE(lp.top[i - 1].second, lp.top[i].second);
    }
  }
  EXPECT_EQ(lp.top[0].first, std::max_element(logits.begin(), logits.end()) - logits.begin());
  EXPECT_TRUE(sampler.logprobs(logits, 7, 0).top.empty());
  EXPECT_EQ(sampler.logprobs(logits, 7, 99).top.size(), 30u);
  const TokenLogprob equal = sampler.logprobs(std::vector<float>(30, 1.0f), 3, 3);
  EXPECT_EQ(equal.top[0].first, 0);
  EXPECT_EQ(equal.top[2].first, 2);
}

TEST(Sampler, SampleIndexAndPositionChangeTheDraw) {
  const ResolvedParams p = make(1, 1, 0, 0);
  const std::vector<float> flat(1000, 0.0f);
  Sampler sampler(1000, active_cpu_level());
  std::set<int32_t> seen;
  const std::vector<int32_t> tokens(20, 0);
  for (uint32_t sample = 0; sample < 10; ++sample)
    for (size_t length = 1; length <= 10; ++length)
      seen.insert(sampler.sample(flat, {&p, std::span<const int32_t>(tokens).first(length), 1, sample}));
  EXPECT_GT(seen.size(), 85u);  // 95 expected of 100 uniform draws from 1000
  const SampleInput again{&p, tokens, 1, 4};
  EXPECT_EQ(sampler.sample(flat, again), sampler.sample(flat, again));
}

}  // namespace
}  // namespace duet
