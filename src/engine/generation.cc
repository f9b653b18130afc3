// One generate() call: sequences into the scheduler, steps until none is left, each new token through
// sampler, detokenizer and stop rules.
#include <algorithm>
#include <deque>
#include <utility>

#include "base/clock.h"
#include "engine/block_manager.h"
#include "engine/engine.h"
#include "engine/stop.h"

namespace duet {

namespace {

struct Continuation {
  Sequence sequence;
  const ResolvedParams* params = nullptr;
  size_t request = 0;
  uint32_t sample = 0;
  std::unique_ptr<TextStream> stream;  // null without a tokenizer
  Completion out;
};

class Generation {
 public:
  Generation(Engine& engine, std::vector<RequestOutput>& outputs, const std::vector<ResolvedParams>& params)
      : engine_(engine),
        outputs_(outputs),
        blocks_(engine.info().kv_blocks, engine.info().block_size),
        scheduler_({engine.options().max_num_batched_tokens, engine.options().max_num_seqs, 0}, &blocks_) {
    for (size_t request = 0; request < outputs.size(); ++request) {
      outputs[request].completions.resize(static_cast<size_t>(params[request].n));
      unfinished_.push_back(params[request].n);
      for (int sample = 0; sample < params[request].n; ++sample)
        add(request, static_cast<uint32_t>(sample), params[request]);
    }
  }

  void run(const std::function<void(const Progress&)>& progress) {
    const EngineCounters before = engine_.counters();
    const int64_t start = now_ns();
    Step step;
    while (scheduler_.has_work()) {
      const int64_t begin = now_ns();
      const StepResult result = engine_.run_step(scheduler_, step);
      const size_t vocab = result.logits.size() / std::max<size_t>(step.wanted.size(), 1);
      for (size_t i = 0; i < step.wanted.size(); ++i)
        advance(continuations_[static_cast<size_t>(step.wanted[i].sequence->id)],
                result.logits.subspan(i * vocab, vocab));
      engine_.count_time(step, static_cast<double>(now_ns() - begin) * 1e-9);
      if (progress) progress(progress_since(before, start));
    }
  }

  int64_t preemptions() const { return scheduler_.preemptions(); }

 private:
  void add(size_t request, uint32_t sample, const ResolvedParams& params) {
    Continuation& c = continuations_.emplace_back();
    c.params = &params;
    c.request = request;
    c.sample = sample;
    c.sequence.id = static_cast<int64_t>(continuations_.size()) - 1;
    c.sequence.tokens = outputs_[request].prompt_token_ids;
    c.sequence.prompt_tokens = c.sequence.length();
    c.sequence.first_wanted = c.sequence.length() - 1;
    if (engine_.text()) c.stream = engine_.text()->stream(params.skip_special_tokens);
    scheduler_.add(&c.sequence);
  }

  void advance(Continuation& c, std::span<const float> logits) {
    const ResolvedParams& params = *c.params;
    const int32_t token =
        engine_.sampler().sample(logits, {&params, c.sequence.tokens, c.sequence.prompt_tokens, c.sample});
    if (params.logprobs >= 0)
      c.out.logprobs.push_back(engine_.sampler().logprobs(logits, token, params.logprobs));
    c.sequence.append(token);
    Finish finish =
        check_token(params, token, c.sequence.generated(), c.sequence.length(), engine_.info().max_model_len);
    if (c.stream) {
      // A stop token is among the ids, not in the text.
      if (finish != Finish::kStop && add_text(c, c.stream->push(token)))
        finish = Finish::kStop;
      else if (finish != Finish::kNone && add_text(c, c.stream->finish()))
        finish = Finish::kStop;
    }
    if (finish != Finish::kNone) close(c, finish);
  }

  // True when a stop string came up: the text then ends before it.
  bool add_text(Continuation& c, const std::string& piece) {
    c.out.text += piece;
    if (c.params->stop.empty() || c.sequence.generated() <= c.params->min_tokens) return false;
    const auto at = find_stop(c.out.text, piece.size(), c.params->stop);
    if (at) c.out.text.resize(*at);
    return at.has_value();
  }

  void close(Continuation& c, Finish finish) {
    scheduler_.finish(&c.sequence);
    c.out.token_ids.assign(c.sequence.tokens.begin() + c.sequence.prompt_tokens, c.sequence.tokens.end());
    c.out.finish_reason = to_string(finish);
    outputs_[c.request].completions[c.sample] = std::move(c.out);
    c.stream.reset();
    if (--unfinished_[c.request] == 0) ++done_;
  }

  Progress progress_since(const EngineCounters& before, int64_t start) const {
    const EngineCounters& now = engine_.counters();
    Progress p;
    p.requests_done = done_;
    p.requests = static_cast<int64_t>(outputs_.size());
    p.prefill_tokens = now.prefill_tokens - before.prefill_tokens;
    p.decode_tokens = now.decode_tokens - before.decode_tokens;
    p.seconds = static_cast<double>(now_ns() - start) * 1e-9;
    p.exposed_ms = now.exposed_ms - before.exposed_ms;
    p.step_ms = now.step_ms - before.step_ms;
    return p;
  }

  Engine& engine_;
  std::vector<RequestOutput>& outputs_;
  BlockManager blocks_;
  Scheduler scheduler_;
  std::deque<Continuation> continuations_;  // by Sequence::id; stays in place
  std::vector<int> unfinished_;             // continuations per request
  int64_t done_ = 0;
};

}  // namespace

void run_generation(Engine& engine, std::vector<RequestOutput>& outputs,
                    const std::vector<ResolvedParams>& params,
                    const std::function<void(const Progress&)>& progress) {
  Generation generation(engine, outputs, params);
  generation.run(progress);
  engine.count_preemptions(generation.preemptions());
}

}  // namespace duet
