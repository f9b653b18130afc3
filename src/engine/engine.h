// Engine: one loaded model and the two runs that it makes, generation and logits. What duet::Llm is
// made of; throws duet::Error. Belongs to one thread at a time. KV blocks, scheduler and sequences
// live for one run, so a run that throws leaves nothing behind.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "duet/llm.h"
#include "engine/params.h"
#include "engine/rank_group.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/step_builder.h"
#include "engine/text_io.h"

namespace duet {

/// Counted on rank 0 since the start or the last reset, beside what the ranks measure.
struct EngineCounters {
  int64_t prefill_tokens = 0, decode_tokens = 0;   // each token once, recomputation left out
  double prefill_seconds = 0, decode_seconds = 0;  // a step's time, shared out by its rows of each kind
  int64_t preemptions = 0;
  double step_ms = 0, exposed_ms = 0;
};

class Engine {
 public:
  /// Null on an MPI rank other than 0 (see RankGroup::start).
  static std::unique_ptr<Engine> start(const LlmOptions& options,
                                       const std::function<void(double)>& progress);

  std::vector<RequestOutput> generate(const std::vector<Prompt>& prompts,
                                      const std::vector<SamplingParams>& params,
                                      const std::function<void(const Progress&)>& progress);
  void logits(const std::vector<Prompt>& prompts, const LogitsOptions& options,
              const std::function<void(size_t, int64_t, int64_t, const float*)>& sink);
  std::vector<int32_t> tokenize(const Prompt& prompt, std::string* text) const;
  void set_dbo(const std::string& dbo);
  void set_micro_batches(int micro_batches);
  LlmStats stats();
  void reset_stats();

  RankGroup& ranks() { return *ranks_; }
  const ModelInfo& info() const { return ranks_->info(); }
  const TextIo* text() const { return text_.get(); }  // null with skip_tokenizer_init
  const LlmOptions& options() const { return options_; }
  const EngineCounters& counters() const { return counters_; }
  Sampler& sampler() { return *sampler_; }

  /// Schedules, builds and runs the next step, then advances its sequences. The logits of row i are
  /// wanted by step.wanted[i].
  StepResult run_step(Scheduler& scheduler, Step& step);
  /// Adds a step's time, everything done for it on rank 0 included.
  void count_time(const Step& step, double seconds);
  void count_preemptions(int64_t count) { counters_.preemptions += count; }

 private:
  Engine() = default;
  std::vector<int32_t> checked_tokens(const Prompt& prompt, size_t index, std::string* text) const;
  std::vector<ResolvedParams> checked_params(const std::vector<SamplingParams>& params, size_t prompts);
  void check_fits(size_t index, int64_t prompt_tokens, int64_t max_tokens) const;

  LlmOptions options_;
  std::unique_ptr<TextIo> text_;
  std::unique_ptr<RankGroup> ranks_;
  SamplingDefaults defaults_;
  std::unique_ptr<StepBuilder> builder_;
  std::unique_ptr<Sampler> sampler_;
  int64_t max_logits_rows_ = 0;
  uint64_t requests_seen_ = 0;  // since load: the number that an unset seed is derived from
  EngineCounters counters_;
};

/// The continuations of `outputs` (prompts filled in), one set of parameters each; generation.cc.
void run_generation(Engine& engine, std::vector<RequestOutput>& outputs,
                    const std::vector<ResolvedParams>& params,
                    const std::function<void(const Progress&)>& progress);

}  // namespace duet
