#include "engine/generation.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "engine/block_manager.h"
#include "engine/engine.h"

namespace duet {

struct Generator::Request {
  int64_t id = 0;
  GenerationRequest given;
  DeltaSink sink;
  int64_t arrival_ns = 0;
  std::vector<int64_t> unfinished;  // sequence ids
};

struct Generator::Continuation {
  Sequence sequence;
  Request* request = nullptr;
  uint32_t sample = 0;
  std::unique_ptr<TextStream> stream;  // null without a tokenizer
  std::string text;
  size_t released = 0;  // bytes of `text` that went out
  Delta delta;          // of this step

  const ResolvedParams& params() const { return request->given.params; }
  bool best_will_do() const {
    return params().logprobs < 0 && Sampler::takes_best(params(), sequence.generated());
  }
};

Generator::Generator(Engine& engine, BlockManager* blocks)
    : engine_(engine),
      scheduler_({engine.options().max_num_batched_tokens, engine.options().max_num_seqs, 0,
                  engine.max_logits_rows()},
                 blocks) {}

Generator::~Generator() {
  for (auto& [id, c] : continuations_) scheduler_.finish(&c->sequence);
}

void Generator::add(int64_t id, GenerationRequest request, DeltaSink sink, int64_t arrival_ns) {
  auto owned = std::make_unique<Request>();
  Request& r = *owned;
  r.id = id;
  r.given = std::move(request);
  r.sink = std::move(sink);
  r.arrival_ns = arrival_ns;
  DUET_CHECK(requests_.emplace(id, std::move(owned)).second);
  const ResolvedParams& params = r.given.params;
  for (int sample = 0; sample < params.n; ++sample) {
    auto continuation = std::make_unique<Continuation>();
    Continuation& c = *continuation;
    c.request = &r;
    c.sample = static_cast<uint32_t>(sample);
    c.sequence.id = next_sequence_++;
    c.sequence.tokens = r.given.prompt;
    c.sequence.prompt_tokens = c.sequence.length();
    // The logits of the last token of a prompt are no prompt_logprobs, but the first step of sampling.
    c.sequence.first_wanted = params.prompt_logprobs >= 0 && sample == 0 ? 0 : c.sequence.length() - 1;
    c.sequence.best_will_do = c.best_will_do();
    if (engine_.text()) c.stream = engine_.text()->stream(params.skip_special_tokens);
    r.unfinished.push_back(c.sequence.id);
    scheduler_.add(&c.sequence);
    continuations_.emplace(c.sequence.id, std::move(continuation));
  }
}

void Generator::end(Request& request, Finish finish, const std::exception_ptr& error) {
  // close() erases the request with its last continuation.
  for (const int64_t id : std::vector<int64_t>(request.unfinished))
    close(*continuations_.at(id), finish, error);
}

void Generator::abort(int64_t id) {
  if (const auto found = requests_.find(id); found != requests_.end())
    end(*found->second, Finish::kAbort, nullptr);
}

void Generator::abort_all() {
  while (!requests_.empty()) end(*requests_.begin()->second, Finish::kAbort, nullptr);
}

void Generator::fail_all(const std::exception_ptr& error) {
  while (!requests_.empty()) end(*requests_.begin()->second, Finish::kError, error);
}

const Step& Generator::step() {
  const int64_t begin = now_ns();
  last_result_ = engine_.run_step(scheduler_, step_);
  const StepResult& result = last_result_;
  const int64_t now = now_ns();
  const size_t vocab = result.logits.size() / std::max<size_t>(step_.wanted.size(), 1);
  // By number: a continuation that closes takes its sequence with it.
  std::vector<int64_t> ids;
  for (const WantedLogits& wanted : step_.wanted) ids.push_back(wanted.sequence->id);
  for (size_t i = 0; i < step_.wanted.size(); ++i) {
    const auto found = continuations_.find(ids[i]);
    if (found == continuations_.end()) continue;
    Continuation& c = *found->second;
    const int64_t token = step_.wanted[i].token;
    const auto row = result.logits.subspan(i * vocab, vocab);
    try {
      if (token + 1 < c.sequence.length())
        take_prompt_row(c, token, row);
      else
        advance(c, row, result.best[i], now);
    } catch (const std::exception&) {
      close(c, Finish::kError, std::current_exception());
    }
  }
  engine_.count_time(step_, static_cast<double>(now_ns() - begin) * 1e-9);
  return step_;
}

void Generator::take_prompt_row(Continuation& c, int64_t token, std::span<const float> logits) {
  const int32_t next = c.sequence.tokens[static_cast<size_t>(token) + 1];
  c.delta.prompt_logprobs.push_back(engine_.sampler().logprobs(logits, next, c.params().prompt_logprobs));
  c.sequence.first_wanted = token + 1;  // a preempted prompt hands over each row once
}

void Generator::advance(Continuation& c, std::span<const float> logits, const BestToken& best, int64_t now) {
  const ResolvedParams& params = c.params();
  Sequence& sequence = c.sequence;
  const int32_t token =
      best.id != BestToken::kWholeRow
          ? Sampler::take(best)
          : engine_.sampler().sample(logits, {&params, sequence.tokens, sequence.prompt_tokens, c.sample});
  c.delta.token_ids.push_back(token);
  if (params.logprobs >= 0)
    c.delta.logprobs.push_back(engine_.sampler().logprobs(logits, token, params.logprobs));
  c.delta.at_ns = now;
  sequence.append(token);
  sequence.best_will_do = c.best_will_do();
  Finish finish =
      check_token(params, token, sequence.generated(), sequence.length(), engine_.info().max_model_len);
  if (finish == Finish::kStop && std::binary_search(params.requested_stop_token_ids.begin(),
                                                    params.requested_stop_token_ids.end(), token))
    c.delta.stop_token_id = token;
  if (c.stream) {
    // A stop token is among the ids, not in the text.
    if (finish != Finish::kStop && add_text(c, c.stream->push(token)))
      finish = Finish::kStop;
    else if (finish != Finish::kNone && add_text(c, c.stream->finish()))
      finish = Finish::kStop;
  }
  if (finish != Finish::kNone)
    close(c, finish);
  else
    deliver(c);
}

// True when a stop string came up: the text then ends before it.
bool Generator::add_text(Continuation& c, const std::string& piece) {
  const ResolvedParams& params = c.params();
  c.text += piece;
  if (params.stop.empty() || c.sequence.generated() <= params.min_tokens) return false;
  const auto match = find_stop(c.text, piece.size(), params.stop);
  if (!match) return false;
  const std::string& stop = params.stop[match->index];
  c.text.resize(match->at + (params.include_stop ? stop.size() : 0));
  c.delta.stop_string = stop;
  return true;
}

void Generator::deliver(Continuation& c) {
  const size_t kept = c.delta.finish == Finish::kNone ? held_back(c.text, c.params().stop) : 0;
  const size_t end = std::max(c.text.size() - kept, c.released);
  c.delta.text = c.text.substr(c.released, end - c.released);
  c.released = end;
  c.delta.sample = c.sample;
  c.delta.cached_tokens = c.sequence.cached;
  c.delta.arrival_ns = c.request->arrival_ns;
  c.delta.scheduled_ns = c.sequence.started_ns;
  if (c.delta.at_ns == 0) c.delta.at_ns = now_ns();
  c.request->sink(std::exchange(c.delta, {}));
}

void Generator::close(Continuation& c, Finish finish, const std::exception_ptr& error) {
  scheduler_.finish(&c.sequence);
  c.delta.finish = finish;
  c.delta.error = error;
  deliver(c);
  Request& request = *c.request;
  std::erase(request.unfinished, c.sequence.id);
  continuations_.erase(c.sequence.id);
  if (request.unfinished.empty()) requests_.erase(request.id);
}

}  // namespace duet
