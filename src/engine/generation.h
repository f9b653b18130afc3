// Generator: all requests that are being continued. Requests come and go between steps; a step
// schedules, runs the model, and takes each new token through sampler, detokenizer and stop rules to
// its request's sink. Llm::generate drives it on the caller's thread, EngineThread on its own.
// Belongs to one thread. Always holds: a request that was added gets exactly one finish per
// continuation, unless its sink is dropped with the generator.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "duet/llm.h"
#include "engine/params.h"
#include "engine/rank_group.h"
#include "engine/request.h"
#include "engine/scheduler.h"
#include "engine/step_builder.h"
#include "engine/stop.h"
#include "engine/text_io.h"

namespace duet {

class BlockManager;
class Engine;

/// Made by Engine::prepare: tokenised, resolved, known to fit the model and its cache.
struct GenerationRequest {
  std::string text;  // that was tokenised
  std::vector<int32_t> prompt;
  ResolvedParams params;
};

/// What a step brought to one continuation. Text is whole characters, without what may turn out to be
/// a stop string; all deltas together are the completion.
struct Delta {
  uint32_t sample = 0;  // which of the request's n continuations
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<TokenLogprob> logprobs;
  std::vector<TokenLogprob> prompt_logprobs;  // with the first delta of sample 0: of prompt tokens 1, 2, …
  Finish finish = Finish::kNone;
  std::string stop_string;     // with kStop: which one, or …
  int32_t stop_token_id = -1;  // … which of the request's stop_token_ids
  std::exception_ptr error;    // with kError
  int64_t cached_tokens = 0;   // of the prompt
  // Moments, as now_ns() tells them.
  int64_t arrival_ns = 0, scheduled_ns = 0, at_ns = 0;
};

/// Called on the generator's thread; must neither block nor throw.
using DeltaSink = std::function<void(Delta&&)>;

class Generator {
 public:
  Generator(Engine& engine, BlockManager* blocks);
  ~Generator();
  Generator(const Generator&) = delete;
  Generator& operator=(const Generator&) = delete;

  /// `id` is the caller's, unique among live requests; `arrival_ns` is when it was asked for.
  void add(int64_t id, GenerationRequest request, DeltaSink sink, int64_t arrival_ns);
  /// Frees the request's blocks at once; its unfinished continuations end with kAbort. Unknown ids (it
  /// has finished) are ignored.
  void abort(int64_t id);
  void abort_all();
  /// Ends every request with kError and this error.
  void fail_all(const std::exception_ptr& error);

  bool has_work() const { return scheduler_.has_work(); }
  /// One step. What it throws (a rank failed) leaves requests as they are: fail_all is next. A
  /// continuation that alone is in trouble (its logits are no numbers) ends with kError.
  const Step& step();
  /// What the last step measured; its spans hold until the next one.
  const StepResult& last_result() const { return last_result_; }

  const Scheduler& scheduler() const { return scheduler_; }

 private:
  struct Request;
  struct Continuation;

  void advance(Continuation& c, std::span<const float> logits, const BestToken& best, int64_t now);
  void take_prompt_row(Continuation& c, int64_t token, std::span<const float> logits);
  bool add_text(Continuation& c, const std::string& piece);
  void deliver(Continuation& c);
  void close(Continuation& c, Finish finish, const std::exception_ptr& error = nullptr);
  void end(Request& request, Finish finish, const std::exception_ptr& error);

  Engine& engine_;
  Scheduler scheduler_;
  Step step_;
  StepResult last_result_;
  int64_t next_sequence_ = 0;
  std::unordered_map<int64_t, std::unique_ptr<Request>> requests_;
  std::unordered_map<int64_t, std::unique_ptr<Continuation>> continuations_;  // by Sequence::id
};

}  // namespace duet
