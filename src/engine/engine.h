// Engine: one loaded model, its KV blocks, and the runs it makes: generation and logits. What duet::Llm
// and the server's EngineThread are made of; throws duet::Error. Belongs to one thread at a time, but
// for prepare() and tokenize(), which any thread may call meanwhile. A run that throws leaves no
// request behind.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "duet/llm.h"
#include "engine/block_manager.h"
#include "engine/generation.h"
#include "engine/params.h"
#include "engine/planner.h"
#include "engine/prefix_cache.h"
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
  int64_t steps = 0, steps_overlapped = 0;
  double step_ms = 0, exposed_ms = 0, comm_ms = 0;  // inside steps, on rank 0
};

class Engine {
 public:
  /// Null on an MPI rank other than 0 (see RankGroup::start).
  static std::unique_ptr<Engine> start(const LlmOptions& options,
                                       const std::function<void(double)>& progress);

  std::vector<RequestOutput> generate(const std::vector<Prompt>& prompts,
                                      const std::vector<SamplingParams>& params,
                                      const std::function<void(const Progress&)>& progress);
  /// Checks and completes one request; `name` stands for the prompt in messages ("prompt 3"). Several
  /// threads may call it at once.
  GenerationRequest prepare(const Prompt& prompt, const SamplingParams& params, const std::string& name);
  int64_t next_request_id() { return ++requests_added_; }
  Generator& generator() { return *generator_; }

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
  int64_t max_logits_rows() const { return max_logits_rows_; }
  const BlockManager& blocks() const { return *blocks_; }
  Sampler& sampler() { return *sampler_; }

  /// Schedules, builds and runs the next step, then advances its sequences. The logits of row i are
  /// wanted by step.wanted[i].
  StepResult run_step(Scheduler& scheduler, Step& step);
  /// Adds a step's time, everything done for it on rank 0 included.
  void count_time(const Step& step, double seconds);

 private:
  Engine() = default;
  std::vector<int32_t> checked_tokens(const Prompt& prompt, const std::string& name, std::string* text) const;
  void check_fits(const std::string& name, int64_t prompt_tokens, int64_t max_tokens) const;

  LlmOptions options_;
  std::unique_ptr<TextIo> text_;
  std::unique_ptr<RankGroup> ranks_;
  SamplingDefaults defaults_;
  SplitPolicy policy_;
  std::unique_ptr<Sampler> sampler_;
  int64_t max_logits_rows_ = 0;
  std::atomic<uint64_t> requests_seen_{0};  // since load: the number that an unset seed is derived from
  std::atomic<int64_t> requests_added_{0};
  EngineCounters counters_;
  std::unique_ptr<PrefixCache> cache_;  // null: off
  std::unique_ptr<BlockManager> blocks_;
  std::unique_ptr<Generator> generator_;
};

}  // namespace duet
