#include "cli/bench_overlap.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "engine/planner.h"

namespace duet {

namespace {

// Two-sided 95 % of Student's t by degrees of freedom, from 1 on.
constexpr std::array<double, 30> kStudent{
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120,  2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042};

// The split alone explains the figures and is no part of them.
constexpr int kExplainingRepeats = 2;
// What the network takes hardly varies.
constexpr int kLockstepRepeats = 3;

struct Sample {
  double step = 0;
  RunStats stats;
};

using Samples = std::vector<Sample>;

template <typename Field>
std::vector<double> each(const Samples& samples, const Field& field) {
  std::vector<double> values;
  for (const Sample& s : samples) values.push_back(field(s));
  return values;
}

std::vector<double> steps_of(const Samples& samples) {
  return each(samples, [](const Sample& s) { return s.step; });
}

LaneTimes summary(const Samples& samples) {
  LaneTimes t;
  const std::vector<double> steps = steps_of(samples);
  t.step = median(steps);
  t.step_low = *std::min_element(steps.begin(), steps.end());
  t.step_high = *std::max_element(steps.begin(), steps.end());
  t.compute = median(each(samples, [](const Sample& s) { return s.stats.compute_ms; }));
  t.comm = median(each(samples, [](const Sample& s) { return s.stats.comm_ms; }));
  t.exposed = median(each(samples, [](const Sample& s) { return s.stats.exposed_ms; }));
  t.comm_cpu = median(each(samples, [](const Sample& s) { return s.stats.comm_cpu_ms; }));
  t.compute_cpu = median(each(samples, [](const Sample& s) { return s.stats.compute_cpu_ms; }));
  t.imbalance =
      median(each(samples, [](const Sample& s) { return s.stats.compute_ms - s.stats.compute_least_ms; }));
  return t;
}

SplitPolicy policy_of(DboMode mode, const OverlapBenchOptions& options) {
  SplitPolicy policy;
  policy.dbo = mode;
  policy.thresholds = {2, 2};
  policy.micro_batches = options.micro_batches;
  return policy;
}

StepBatch batch_of(RankGroup& group, const ProbeShape& shape, bool whole_logits = false) {
  return probe_batch(shape, group.info().block_size, group.info().config.vocab_size, whole_logits);
}

class Bench {
 public:
  Bench(RankGroup& group, const ProbeShape& shape, const OverlapBenchOptions& options)
      : group_(group),
        whole_(batch_of(group, shape)),
        with_logits_(batch_of(group, shape, true)),
        on_(policy_of(DboMode::kOn, options)),
        auto_(policy_of(DboMode::kAuto, options)) {}

  // Warms up, and compares all logits; the timed runs compare the tokens that they lead to.
  void compare_logits(DboMode mode) {
    StepBatch batch = with_logits_;
    const StepResult result = group_.run(batch, mode == DboMode::kOff ? SplitPolicy{} : on_, nullptr);
    if (logits_.empty()) logits_.assign(result.logits.begin(), result.logits.end());
    exact_ = exact_ && result.logits.size() == logits_.size() &&
             std::memcmp(result.logits.data(), logits_.data(), logits_.size() * sizeof(float)) == 0;
  }

  Sample planned(const SplitPolicy& policy, Plan* plan) {
    StepBatch batch = whole_;
    return timed([&] { return group_.run(batch, policy, plan); }, true);
  }
  Sample off() { return planned({}, nullptr); }
  Sample on(Plan* plan) { return planned(on_, plan); }
  Sample automatic(Plan* plan) { return planned(auto_, plan); }
  // Auto's program is very often that of "off" or that of "on".
  enum class Same { kOff, kOn, kNeither };
  Same automatic_is(Plan* plan) {
    StepBatch automatic = whole_, on = whole_;
    *plan = group_.plan(automatic, auto_);
    if (plan->micro_batches == 1) return Same::kOff;
    group_.plan(on, on_);
    const bool same = automatic.borders == on.borders && automatic.overlap == on.overlap;
    return same ? Same::kOn : Same::kNeither;
  }
  // Cut as "on" is, but one lane at a time.
  Sample split_alone() {
    StepBatch batch = whole_;
    group_.plan(batch, on_);
    batch.overlap = false;
    batch.stage_ns.clear();
    return timed([&] { return group_.run(batch); }, true);
  }
  Sample lockstep() {
    StepBatch batch = whole_;
    batch.lockstep = true;
    return timed([&] { return group_.run(batch); }, true);
  }
  double lanes_apart_ms() {
    StepBatch batch = whole_;
    group_.plan(batch, on_);
    return group_.predict(batch, CommLanes::kPerMicroBatch) * 1e-6;
  }
  bool exact() const { return exact_; }

 private:
  template <typename Run>
  Sample timed(const Run& run, bool compare) {
    group_.reset_stats();
    const StepResult result = run();
    Sample sample{static_cast<double>(result.step_ns) * 1e-6, {}};
    if (compare) {
      if (best_.empty()) best_.assign(result.best.begin(), result.best.end());
      exact_ = exact_ && std::equal(result.best.begin(), result.best.end(), best_.begin(), best_.end());
    }
    sample.stats = group_.stats();
    return sample;
  }

  RankGroup& group_;
  StepBatch whole_, with_logits_;
  SplitPolicy on_, auto_;
  std::vector<float> logits_;
  std::vector<BestToken> best_;
  bool exact_ = true;
};

// on − max(computation, communication) in four parts that add up to it.
void explain(OverlapCase& c, double bubbles_of_prediction) {
  const bool network = c.comm > c.off.compute;
  const auto longer = [&](const LaneTimes& t) { return network ? t.comm : t.compute; };
  const double split = network ? c.comm : c.split.compute;
  c.split_price = split - std::max(c.off.compute, c.comm);
  c.comm_cpu_price = longer(c.on) - split;
  const double left = c.on.step - longer(c.on);
  c.bubbles = std::min(bubbles_of_prediction, std::max(left, 0.0));
  c.rest = left - c.bubbles;
}

double predicted_of(const Plan& plan, int micro_batches) {
  for (const PlanCandidate& candidate : plan.candidates)
    if (candidate.micro_batches == micro_batches) return candidate.predicted_ns * 1e-6;
  return 0;
}

double bubbles_of(const Plan& plan) {
  return plan.predicted_ns > 0 ? plan.bubbles_ns * 1e-6 : 0;
}

}  // namespace

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

PairedRatio paired_ratio(const std::vector<double>& numerator, const std::vector<double>& denominator) {
  std::vector<double> ratios, logs;
  for (size_t i = 0; i < numerator.size(); ++i) {
    ratios.push_back(numerator[i] / denominator[i]);
    logs.push_back(std::log(ratios.back()));
  }
  PairedRatio r;
  r.median = median(ratios);
  const double n = static_cast<double>(logs.size());
  double mean = 0, squares = 0;
  for (double x : logs) mean += x / n;
  for (double x : logs) squares += (x - mean) * (x - mean);
  const double t = logs.size() > 1 ? kStudent[std::min(logs.size() - 2, kStudent.size() - 1)] : 0;
  const double half = logs.size() > 1 ? t * std::sqrt(squares / (n - 1) / n) : 0;
  r.low = std::exp(mean - half);
  r.high = std::exp(mean + half);
  return r;
}

OverlapCase bench_overlap_case(RankGroup& group, const ProbeShape& shape, const OverlapBenchOptions& options,
                               const std::function<void(int, int)>& progress) {
  OverlapCase c;
  c.shape = shape;
  Bench bench(group, shape, options);
  Plan on_plan, auto_plan;
  Samples off, split, on, automatic, lockstep;
  const int explaining = std::min(options.repeats, kExplainingRepeats);
  const int locksteps = std::min(options.repeats, kLockstepRepeats);
  const int total = 2 + options.repeats * 3 + explaining + locksteps;
  int done = 0;
  const auto did = [&] { progress(++done, total); };
  for (const DboMode mode : {DboMode::kOff, DboMode::kOn}) {
    bench.compare_logits(mode);
    did();
  }
  for (int r = 0; r < options.repeats; ++r) {
    Bench::Same same = Bench::Same::kNeither;
    // The order turns, so that nothing always runs after the same neighbour.
    for (int i = 0; i < 3; ++i) {
      const int mode = (i + r) % 3;
      if (mode == 0) off.push_back(bench.off());
      if (mode == 1) on.push_back(bench.on(&on_plan));
      if (mode == 2) {
        same = bench.automatic_is(&auto_plan);
        if (same == Bench::Same::kNeither) automatic.push_back(bench.automatic(&auto_plan));
      }
      did();
    }
    // One program, one time: a second run of it would only add the machine's noise to the ratio.
    if (same != Bench::Same::kNeither) automatic.push_back(same == Bench::Same::kOn ? on.back() : off.back());
    if (r < explaining) {
      split.push_back(bench.split_alone());
      did();
    }
    if (r < locksteps) {
      lockstep.push_back(bench.lockstep());
      did();
    }
  }
  c.exact = bench.exact();
  c.micro_batches = on_plan.micro_batches;
  c.auto_micro_batches = auto_plan.micro_batches;
  c.reason = auto_plan.reason;
  c.predicted_on = predicted_of(on_plan, c.micro_batches);
  c.predicted_off = predicted_of(auto_plan, 1);
  c.predicted_lanes_apart = bench.lanes_apart_ms();
  c.off = summary(off);
  c.split = summary(split);
  c.on = summary(on);
  c.automatic = summary(automatic);
  c.comm = median(each(lockstep, [](const Sample& x) { return x.stats.comm_ms; }));
  const double sum = c.off.compute + c.comm;
  c.comm_share = sum > 0 ? c.comm / sum : 0;
  c.ideal = sum / std::max({c.off.compute, c.comm, 1e-9});
  // Pair by pair, so that a drift of the machine's speed falls out.
  std::vector<double> hidden, eta;
  for (size_t i = 0; i < off.size(); ++i) {
    const double compute = off[i].stats.compute_ms;
    hidden.push_back((off[i].step - on[i].step) / std::max(std::min(compute, c.comm), 1e-9));
    eta.push_back(std::max(compute, c.comm) / on[i].step);
  }
  c.hidden = median(hidden);
  c.eta = median(eta);
  c.speedup = paired_ratio(steps_of(off), steps_of(on));
  c.auto_over_off = paired_ratio(steps_of(off), steps_of(automatic));
  c.auto_over_best = paired_ratio(c.off.step < c.on.step ? steps_of(off) : steps_of(on), steps_of(automatic));
  explain(c, bubbles_of(on_plan));
  return c;
}

VirtualCase virtual_case(RankGroup& group, const ProbeShape& shape, const OverlapBenchOptions& options) {
  VirtualCase c;
  c.shape = shape;
  StepBatch batch = batch_of(group, shape);
  const Plan whole = group.plan(batch, policy_of(DboMode::kAuto, options));
  const Plan split = group.plan(batch, policy_of(DboMode::kOn, options));
  for (const PlanCandidate& candidate : whole.candidates) {
    if (candidate.micro_batches != 1) continue;
    c.off = candidate.predicted_ns * 1e-6;
    c.compute = candidate.compute_ns * 1e-6;
    c.comm = candidate.comm_ns * 1e-6;
  }
  c.on = split.predicted_ns * 1e-6;
  c.micro_batches = split.micro_batches;
  c.lanes_apart = group.predict(batch, CommLanes::kPerMicroBatch) * 1e-6;
  return c;
}

double set_comm_share(RankGroup& group, const ProbeShape& shape, double share) {
  const StepBatch batch = batch_of(group, shape);
  double rate = 100e6;
  constexpr int64_t kLatencyNs = 50'000;
  // The wire's time is inversely proportional to the rate, apart from latency and copies.
  for (int trial = 0; trial < 3; ++trial) {
    group.set_link({rate, kLatencyNs});
    if (trial == 0) group.run(batch);
    group.reset_stats();
    group.run(batch);
    const RunStats s = group.stats();
    rate = std::clamp(rate * s.comm_ms * (1.0 - share) / (s.compute_ms * share), 1e4, 1e12);
  }
  group.set_link({rate, kLatencyNs});
  group.forget_costs();
  group.calibrate();
  return rate;
}

}  // namespace duet
