#include "engine/calibration.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/clock.h"
#include "base/log.h"
#include "engine/planner.h"
#include "engine/probe_batch.h"
#include "engine/rank_group.h"

namespace duet {

namespace {

constexpr int64_t kBudgetNs = 4'000'000'000;    // no new size after that
constexpr int64_t kLongStepNs = 1'500'000'000;  // nor a larger one after a step of that length
constexpr int64_t kDecodeContext = 256;
// Small steps vary, and cost nothing to repeat.
constexpr int64_t kRepeatBelowNs = 100'000'000;
constexpr int kRepeats = 3;
constexpr int kPairs = 2;
// Whole rows of logits are long and cost in proportion: few tell enough, and over a slow link many would take
// the time that larger steps need.
constexpr int64_t kMostWholeRows = 16;
// Kept costs are believed while steps take this much more or less; a choice then errs by less than that, and
// what steps take goes on being learnt.
constexpr double kBelievedShare = 0.25;

class Calibration {
 public:
  Calibration(RankGroup& group, const RankOptions& options, const ModelInfo& info)
      : group_(group), options_(options), info_(info), start_(now_ns()) {}

  std::string differs() {
    measure(shape(ProbePhase::kPrefill, 1, 0), 1, false);  // the first step of all is longer
    for (int64_t rows : {int64_t{1}, std::min<int64_t>(256, options_.max_batched_tokens)}) {
      const ProbeShape s = shape(ProbePhase::kPrefill, rows, 0);
      if (!fits(s)) continue;
      const double predicted =
          group_.predict(probe_batch(s, info_.block_size, info_.config.vocab_size), CommLanes::kOne);
      double least = 0;
      for (int i = 0; i < kRepeats && (i == 0 || least < kRepeatBelowNs); ++i) {
        const double ns = static_cast<double>(measure(s, 1, false));
        least = i == 0 ? ns : std::min(least, ns);
      }
      if (std::abs(least - predicted) > kBelievedShare * predicted)
        return fmt::format("a step of {} tokens takes {:.1f} ms, not {:.1f}", rows, least * 1e-6,
                           predicted * 1e-6);
    }
    return {};
  }

  void run() {
    measure(shape(ProbePhase::kPrefill, std::min<int64_t>(64, options_.max_batched_tokens), 0), 1, false);
    int64_t largest = 0;
    for (int64_t rows = 1; rows <= std::min<int64_t>(512, options_.max_batched_tokens); rows *= 4) {
      if (!series(rows)) break;
      largest = rows;
    }
    if (largest >= 4) {
      // What overlap costs beside what it hides, and what a longer context does.
      overlapped(ProbePhase::kPrefill, largest, 2);
      if (options_.max_micro_batches >= 4) overlapped(ProbePhase::kPrefill, largest, 4);
      overlapped(ProbePhase::kDecode, std::min<int64_t>(largest, 64), 2);
      measure(shape(ProbePhase::kPrefill, largest, 2 * largest), 1, true);
    }
    const double seconds = static_cast<double>(now_ns() - start_) * 1e-9;
    if (seconds > 1.0) log_info("measured for {:.1f} s what {} steps cost, for --dbo", seconds, steps_);
  }

 private:
  ProbeShape shape(ProbePhase phase, int64_t rows, int64_t context) const {
    ProbeShape s;
    s.phase = phase;
    s.tokens = rows;
    s.sequences = std::max<int64_t>(1, rows / 256);
    s.context = context;
    return s;
  }

  bool fits(const ProbeShape& s) const {
    const int64_t sequences = s.phase == ProbePhase::kDecode ? s.tokens : s.sequences;
    return s.rows() <= options_.max_batched_tokens && sequences <= options_.max_logits_rows &&
           s.blocks(info_.block_size) <= info_.kv_blocks &&
           s.context + (s.tokens + s.sequences - 1) / s.sequences <= info_.max_model_len;
  }

  // False when there is no time for a larger step.
  bool series(int64_t rows) {
    int64_t longest = 0;
    for (ProbePhase phase : {ProbePhase::kPrefill, ProbePhase::kDecode}) {
      ProbeShape s = shape(phase, rows, phase == ProbePhase::kDecode ? kDecodeContext : 0);
      while (phase == ProbePhase::kDecode && !fits(s) && s.context > 0) s.context /= 2;
      // Blocks of the KV cache that nobody has written yet are memory that the kernel has not given yet, 2
      // MiB at a time: that is no cost of a stage.
      if (phase == ProbePhase::kDecode && rows > 4) measure(s, 1, false);
      longest = std::max(longest, repeat(s));
      // Rows of which all logits travel.
      if (phase == ProbePhase::kDecode && rows <= kMostWholeRows) measure(s, 1, true, true);
    }
    return longest < kLongStepNs && now_ns() - start_ < kBudgetNs;
  }

  // In turns with steps that are not: only neighbours in time can be compared.
  void overlapped(ProbePhase phase, int64_t rows, int parts) {
    const ProbeShape s = shape(phase, rows, phase == ProbePhase::kDecode ? kDecodeContext : 0);
    for (int i = 0; i < kPairs; ++i) {
      measure(s, 1, true);
      measure(s, parts, true);
    }
  }

  int64_t repeat(const ProbeShape& s) {
    int64_t ns = measure(s, 1, true);
    for (int i = 1; i < kRepeats && ns < kRepeatBelowNs; ++i) ns = std::max(ns, measure(s, 1, true));
    return ns;
  }

  int64_t measure(const ProbeShape& s, int parts, bool observe, bool whole_logits = false) {
    if (!fits(s)) return 0;
    StepBatch batch = probe_batch(s, info_.block_size, info_.config.vocab_size, whole_logits);
    batch.observe = observe;
    batch.lockstep = observe && parts == 1;  // what the network takes, whoever comes late
    ++steps_;
    if (parts == 1) return group_.run(batch).step_ns;
    SplitPolicy policy;
    policy.dbo = DboMode::kOn;
    policy.micro_batches = parts;
    policy.thresholds = {2, 2};
    return group_.run(batch, policy).step_ns;
  }

  RankGroup& group_;
  const RankOptions& options_;
  const ModelInfo& info_;
  int64_t start_;
  int64_t steps_ = 0;
};

}  // namespace

void run_calibration(RankGroup& group, const RankOptions& options, const ModelInfo& info) {
  Calibration(group, options, info).run();
  group.reset_stats();
}

std::string costs_differ(RankGroup& group, const RankOptions& options, const ModelInfo& info) {
  std::string differs = Calibration(group, options, info).differs();
  group.reset_stats();
  return differs;
}

}  // namespace duet
