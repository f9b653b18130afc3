#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <filesystem>

#include "base/clock.h"
#include "base/error.h"
#include "engine/options.h"
#include "engine/random.h"

namespace duet {

namespace {

SamplingDefaults sampling_defaults(const LlmOptions& options, const ModelConfig& config) {
  if (options.generation_config != "auto" && options.generation_config != "vllm")
    throw Error(
        ErrorKind::kInvalidArgument,
        fmt::format("--generation-config is \"{}\", must be one of: auto, vllm", options.generation_config));
  SamplingDefaults defaults;
  defaults.vocab_size = config.vocab_size;
  std::error_code ignored;
  if (std::filesystem::is_directory(options.model, ignored))
    defaults.generation = load_generation_config(options.model);
  // The model's end is known from both files whatever the sampling defaults come from, as in vLLM.
  defaults.eos_token_ids = defaults.generation.eos_token_ids;
  defaults.eos_token_ids.insert(defaults.eos_token_ids.end(), config.eos_token_ids.begin(),
                                config.eos_token_ids.end());
  if (options.generation_config == "vllm") defaults.generation = {};
  return defaults;
}

bool blank(const Prompt& p) {
  return p.text.empty() && p.token_ids.empty() && p.messages_json.empty();
}

}  // namespace

std::unique_ptr<Engine> Engine::start(const LlmOptions& options,
                                      const std::function<void(double)>& progress) {
  // Everything that can be wrong with the options or the small files is found by every process alike
  // before ranks wait for one another.
  std::unique_ptr<Engine> engine(new Engine());
  engine->options_ = options;
  const SplitPolicy policy = split_policy(options);
  const ModelConfig config = read_model_config(options);
  const RankOptions ranks = rank_options(options, config.vocab_size);
  engine->defaults_ = sampling_defaults(options, config);
  if (!options.skip_tokenizer_init) {
    engine->text_ = load_text_io(options);
    // vLLM's end of sequence is the tokenizer's, joined by the model's.
    if (const auto eos = engine->text_->eos_token_id()) engine->defaults_.eos_token_ids.push_back(*eos);
  }
  engine->max_logits_rows_ = ranks.max_logits_rows;

  engine->ranks_ = RankGroup::start(ranks, progress);
  if (!engine->ranks_) return nullptr;
  engine->policy_ = policy;
  if (policy.dbo != DboMode::kOff) engine->ranks_->calibrate();
  engine->sampler_ = std::make_unique<Sampler>(config.vocab_size, engine->info().cpu_level);
  if (options.enable_prefix_caching)
    engine->cache_ = std::make_unique<PrefixCache>(options.prefix_cache_prompt_only);
  engine->blocks_ = std::make_unique<BlockManager>(engine->info().kv_blocks, engine->info().block_size,
                                                   engine->cache_.get());
  engine->generator_ = std::make_unique<Generator>(*engine, engine->blocks_.get());
  return engine;
}

std::vector<int32_t> Engine::tokenize(const Prompt& prompt, std::string* text) const {
  const int given = !prompt.text.empty() + !prompt.token_ids.empty() + !prompt.messages_json.empty();
  if (given > 1)
    throw Error(ErrorKind::kInvalidArgument,
                "a prompt takes one of text, token ids and messages, not several");
  if (text) text->clear();
  if (!prompt.token_ids.empty()) return prompt.token_ids;
  if (!text_ && !blank(prompt))
    throw Error(
        ErrorKind::kInvalidArgument,
        "a prompt holds text, but the tokenizer was not loaded (skip_tokenizer_init): give token ids");
  return text_ ? text_->encode(prompt, text) : std::vector<int32_t>();
}

std::vector<int32_t> Engine::checked_tokens(const Prompt& prompt, const std::string& name,
                                            std::string* text) const {
  std::vector<int32_t> ids = tokenize(prompt, text);
  if (ids.empty()) throw Error(ErrorKind::kInvalidArgument, fmt::format("{} is empty", name));
  const int64_t vocab = info().config.vocab_size;
  for (const int32_t id : ids)
    if (id < 0 || id >= vocab)
      throw Error(
          ErrorKind::kInvalidArgument,
          fmt::format("{} holds token id {}, the model's vocabulary has ids 0 to {}", name, id, vocab - 1));
  return ids;
}

// The last token generated is never computed, hence the − 1 on what the cache has to hold.
void Engine::check_fits(const std::string& name, int64_t prompt_tokens, int64_t max_tokens) const {
  const int64_t longest = info().max_model_len;
  if (prompt_tokens + (max_tokens > 0 ? 1 : 0) > longest)
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{} has {} tokens{}, --max-model-len is {}", name, prompt_tokens,
                            max_tokens > 0 ? ", which leaves no room for a generated one" : "", longest));
  const int64_t tokens = max_tokens > 0 ? std::min(prompt_tokens + max_tokens, longest) - 1 : prompt_tokens;
  const int64_t capacity = info().kv_blocks * info().block_size;
  if (tokens > capacity)
    throw Error(ErrorKind::kResourceExhausted,
                fmt::format("{} has {} tokens and may grow to {}, the KV cache holds {} tokens in all: "
                            "raise --kv-cache-memory or lower --max-tokens",
                            name, prompt_tokens, tokens + 1, capacity));
}

GenerationRequest Engine::prepare(const Prompt& prompt, const SamplingParams& params,
                                  const std::string& name) {
  GenerationRequest request;
  request.params = resolve_params(params, defaults_, derive_seed(options_.seed, requests_seen_++));
  if (!text_ && !request.params.stop.empty())
    throw Error(
        ErrorKind::kInvalidArgument,
        "stop strings need the tokenizer, which was not loaded (skip_tokenizer_init): use stop_token_ids");
  request.prompt = checked_tokens(prompt, name, &request.text);
  check_fits(name, static_cast<int64_t>(request.prompt.size()), request.params.max_tokens);
  return request;
}

namespace {

// Adds a step's news to the whole.
void collect(Delta&& delta, RequestOutput& output) {
  Completion& c = output.completions[delta.sample];
  c.text += delta.text;
  c.token_ids.insert(c.token_ids.end(), delta.token_ids.begin(), delta.token_ids.end());
  c.logprobs.insert(c.logprobs.end(), std::make_move_iterator(delta.logprobs.begin()),
                    std::make_move_iterator(delta.logprobs.end()));
  output.prompt_logprobs.insert(output.prompt_logprobs.end(),
                                std::make_move_iterator(delta.prompt_logprobs.begin()),
                                std::make_move_iterator(delta.prompt_logprobs.end()));
  output.cached_tokens = std::max(output.cached_tokens, delta.cached_tokens);
  if (delta.finish == Finish::kNone) return;
  c.finish_reason = to_string(delta.finish);
  c.stop_string = std::move(delta.stop_string);
  c.stop_token_id = delta.stop_token_id;
}

// One Engine::generate: whatever ends it, its requests leave with it.
class Run {
 public:
  Run(Engine& engine, std::vector<RequestOutput>& outputs) : engine_(engine), outputs_(outputs) {}
  ~Run() {
    for (const int64_t id : ids_) engine_.generator().abort(id);
  }

  void add(GenerationRequest&& request) {
    const size_t index = ids_.size();
    RequestOutput& output = outputs_[index];
    output.prompt = request.text;
    output.prompt_token_ids = request.prompt;
    output.completions.resize(static_cast<size_t>(request.params.n));
    unfinished_.push_back(request.params.n);
    ids_.push_back(engine_.next_request_id());
    const auto sink = [this, index](Delta&& delta) {
      if (delta.error && !error_) error_ = delta.error;
      if (delta.finish != Finish::kNone && --unfinished_[index] == 0) ++done_;
      collect(std::move(delta), outputs_[index]);
    };
    engine_.generator().add(ids_.back(), std::move(request), sink, now_ns());
  }

  void work(const std::function<void(const Progress&)>& progress) {
    const EngineCounters before = engine_.counters();
    const int64_t start = now_ns();
    while (done_ < static_cast<int64_t>(ids_.size())) {
      engine_.generator().step();
      if (error_) std::rethrow_exception(error_);
      if (progress) progress(progress_since(before, start));
    }
  }

 private:
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
  std::vector<int64_t> ids_;
  std::vector<int> unfinished_;  // continuations per request
  int64_t done_ = 0;
  std::exception_ptr error_;
};

}  // namespace

std::vector<RequestOutput> Engine::generate(const std::vector<Prompt>& prompts,
                                            const std::vector<SamplingParams>& params,
                                            const std::function<void(const Progress&)>& progress) {
  if (params.size() != 1 && params.size() != prompts.size())
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{} sets of sampling parameters for {} prompts: give one for all or one for each",
                            params.size(), prompts.size()));
  std::vector<GenerationRequest> requests;
  for (size_t i = 0; i < prompts.size(); ++i)
    requests.push_back(prepare(prompts[i], params[params.size() == 1 ? 0 : i], fmt::format("prompt {}", i)));
  std::vector<RequestOutput> outputs(prompts.size());
  Run run(*this, outputs);
  for (GenerationRequest& request : requests) run.add(std::move(request));
  run.work(progress);
  return outputs;
}

StepResult Engine::run_step(Scheduler& scheduler, Step& step) {
  const int64_t preemptions = scheduler.preemptions();
  const std::vector<ScheduledPiece> pieces = scheduler.schedule();
  counters_.preemptions += scheduler.preemptions() - preemptions;
  const int64_t begin = now_ns();
  for (const ScheduledPiece& piece : pieces)
    if (piece.sequence->started_ns == 0) piece.sequence->started_ns = begin;
  step = build_step(pieces);
  const StepResult result = ranks_->run(step.batch, policy_);
  scheduler.commit(pieces);
  counters_.prefill_tokens += step.new_prompt_tokens;
  counters_.decode_tokens += step.new_generated_tokens;
  counters_.step_ms += static_cast<double>(result.step_ns) * 1e-6;
  counters_.exposed_ms += static_cast<double>(result.exposed_ns) * 1e-6;
  counters_.comm_ms += static_cast<double>(result.comm_ns) * 1e-6;
  ++counters_.steps;
  if (result.overlapped) ++counters_.steps_overlapped;
  return result;
}

void Engine::count_time(const Step& step, double seconds) {
  const double prompt = static_cast<double>(step.prompt_rows) / static_cast<double>(step.batch.rows());
  counters_.prefill_seconds += seconds * prompt;
  counters_.decode_seconds += seconds * (1.0 - prompt);
}

void Engine::logits(const std::vector<Prompt>& prompts, const LogitsOptions& options,
                    const std::function<void(size_t, int64_t, int64_t, const float*)>& sink) {
  if (options.chunk < 0)
    throw Error(ErrorKind::kInvalidArgument, fmt::format("--chunk is {}, must be at least 1", options.chunk));
  if (options.chunk > 0 && options.decode)
    throw Error(ErrorKind::kInvalidArgument,
                "--chunk and --decode exclude each other: --decode takes one token at a time");
  std::deque<Sequence> sequences;  // stays in place while the scheduler points at its elements
  for (size_t i = 0; i < prompts.size(); ++i) {
    Sequence& sequence = sequences.emplace_back();
    sequence.id = static_cast<int64_t>(i);
    const std::string name = fmt::format("prompt {}", i);
    sequence.tokens = checked_tokens(prompts[i], name, nullptr);
    sequence.prompt_tokens = sequence.length();
    check_fits(name, sequence.length(), 0);
    if (options.decode) sequence.prompt_form = AttentionForm::kAbsorbed;
  }
  SchedulerOptions limits;
  limits.max_num_batched_tokens = std::min(options_.max_num_batched_tokens, max_logits_rows_);
  limits.max_num_seqs = limits.max_num_batched_tokens;  // the batch is bounded by tokens alone
  limits.max_tokens_per_sequence = options.decode ? 1 : options.chunk;
  // Reads and fills no prefix cache. What it overwrites there, the cache must not offer any more.
  if (cache_) cache_->clear();
  BlockManager blocks(info().kv_blocks, info().block_size);
  Scheduler scheduler(limits, &blocks);
  for (Sequence& sequence : sequences) scheduler.add(&sequence);

  const size_t vocab = static_cast<size_t>(info().config.vocab_size);
  Step step;
  while (scheduler.has_work()) {
    const StepResult result = run_step(scheduler, step);
    count_time(step, static_cast<double>(result.step_ns) * 1e-9);
    for (size_t first = 0, last; first < step.wanted.size(); first = last) {
      Sequence* sequence = step.wanted[first].sequence;
      for (last = first; last < step.wanted.size() && step.wanted[last].sequence == sequence;) ++last;
      const int64_t rows = static_cast<int64_t>(last - first);
      sink(static_cast<size_t>(sequence->id), step.wanted[first].token, rows,
           result.logits.data() + first * vocab);
      // A prompt that is preempted is computed again, but each of its rows is handed over once.
      sequence->first_wanted += rows;
      if (sequence->first_wanted == sequence->length()) scheduler.finish(sequence);
    }
  }
}

void Engine::set_dbo(const std::string& dbo) {
  const DboMode mode = parse_dbo(dbo);
  if (mode != DboMode::kOff && parse_dbo(options_.dbo) == DboMode::kOff)
    throw Error(ErrorKind::kInvalidArgument,
                "dbo cannot be turned on: the model was loaded with dbo off, which reserves nothing for it");
  policy_.dbo = mode;
}

void Engine::set_micro_batches(int micro_batches) {
  const int most = options_.micro_batches > 0 ? options_.micro_batches : kMostMicroBatches;
  if (micro_batches != 0 && (micro_batches < 2 || micro_batches > most)) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("micro-batches {}: the model was loaded for 2 to {}", micro_batches, most));
  }
  policy_.micro_batches = micro_batches;
}

LlmStats Engine::stats() {
  const RunStats run = ranks_->stats();
  LlmStats s;
  s.prefill_tokens = counters_.prefill_tokens;
  s.decode_tokens = counters_.decode_tokens;
  s.prefill_seconds = counters_.prefill_seconds;
  s.decode_seconds = counters_.decode_seconds;
  s.steps = run.steps;
  s.steps_overlapped = run.steps_overlapped;
  s.preemptions = counters_.preemptions;
  s.step_ms = run.step_ms;
  s.compute_ms = run.compute_ms;
  s.comm_ms = run.comm_ms;
  s.exposed_ms = run.exposed_ms;
  s.hidden_share = run.hidden_share();
  for (const RunStats::Kind& k : run.kinds) s.kinds.push_back({k.kind, k.comm, k.count, k.ms});
  s.decisions = run.decisions;
  return s;
}

void Engine::reset_stats() {
  ranks_->reset_stats();
  counters_ = {};
}

}  // namespace duet
