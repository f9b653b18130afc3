#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <filesystem>

#include "base/error.h"
#include "engine/block_manager.h"
#include "engine/options.h"
#include "engine/random.h"

namespace duet {

namespace {

SamplingDefaults sampling_defaults(const LlmOptions& options, const DeepseekConfig& config) {
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
  const DeepseekConfig config = read_model_config(options);
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
  engine->builder_ = std::make_unique<StepBuilder>(config, policy);
  engine->sampler_ = std::make_unique<Sampler>(config.vocab_size, engine->info().cpu_level);
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

std::vector<int32_t> Engine::checked_tokens(const Prompt& prompt, size_t index, std::string* text) const {
  std::vector<int32_t> ids = tokenize(prompt, text);
  if (ids.empty()) throw Error(ErrorKind::kInvalidArgument, fmt::format("prompt {} is empty", index));
  const int64_t vocab = info().config.vocab_size;
  for (const int32_t id : ids)
    if (id < 0 || id >= vocab)
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("prompt {} holds token id {}, the model's vocabulary has ids 0 to {}", index,
                              id, vocab - 1));
  return ids;
}

std::vector<ResolvedParams> Engine::checked_params(const std::vector<SamplingParams>& params,
                                                   size_t prompts) {
  if (params.size() != 1 && params.size() != prompts)
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{} sets of sampling parameters for {} prompts: give one for all or one for each",
                            params.size(), prompts));
  std::vector<ResolvedParams> resolved;
  resolved.reserve(prompts);
  for (size_t i = 0; i < prompts; ++i) {
    resolved.push_back(resolve_params(params[params.size() == 1 ? 0 : i], defaults_,
                                      derive_seed(options_.seed, requests_seen_ + i)));
    if (!text_ && !resolved.back().stop.empty())
      throw Error(
          ErrorKind::kInvalidArgument,
          "stop strings need the tokenizer, which was not loaded (skip_tokenizer_init): use stop_token_ids");
  }
  requests_seen_ += prompts;
  return resolved;
}

// The last token generated is never computed, hence the − 1 on what the cache has to hold.
void Engine::check_fits(size_t index, int64_t prompt_tokens, int64_t max_tokens) const {
  const int64_t longest = info().max_model_len;
  if (prompt_tokens + (max_tokens > 0 ? 1 : 0) > longest)
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("prompt {} has {} tokens{}, --max-model-len is {}", index, prompt_tokens,
                            max_tokens > 0 ? ", which leaves no room for a generated one" : "", longest));
  const int64_t tokens = max_tokens > 0 ? std::min(prompt_tokens + max_tokens, longest) - 1 : prompt_tokens;
  const int64_t capacity = info().kv_blocks * info().block_size;
  if (tokens > capacity)
    throw Error(
        ErrorKind::kResourceExhausted,
        fmt::format("prompt {} has {} tokens and may grow to {}, the KV cache holds {} tokens in all: "
                    "raise --kv-cache-memory or lower --max-tokens",
                    index, prompt_tokens, tokens + 1, capacity));
}

std::vector<RequestOutput> Engine::generate(const std::vector<Prompt>& prompts,
                                            const std::vector<SamplingParams>& params,
                                            const std::function<void(const Progress&)>& progress) {
  const std::vector<ResolvedParams> resolved = checked_params(params, prompts.size());
  std::vector<RequestOutput> outputs(prompts.size());
  for (size_t i = 0; i < prompts.size(); ++i) {
    outputs[i].prompt_token_ids = checked_tokens(prompts[i], i, &outputs[i].prompt);
    check_fits(i, static_cast<int64_t>(outputs[i].prompt_token_ids.size()), resolved[i].max_tokens);
  }
  run_generation(*this, outputs, resolved, progress);
  return outputs;
}

StepResult Engine::run_step(Scheduler& scheduler, Step& step) {
  const std::vector<ScheduledPiece> pieces = scheduler.schedule();
  step = builder_->build(pieces);
  const StepResult result = ranks_->run(step.batch);
  scheduler.commit(pieces);
  counters_.prefill_tokens += step.new_prompt_tokens;
  counters_.decode_tokens += step.new_generated_tokens;
  counters_.step_ms += static_cast<double>(result.step_ns) * 1e-6;
  counters_.exposed_ms += static_cast<double>(result.exposed_ns) * 1e-6;
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
    sequence.tokens = checked_tokens(prompts[i], i, nullptr);
    sequence.prompt_tokens = sequence.length();
    check_fits(i, sequence.length(), 0);
    if (options.decode) sequence.prompt_form = AttentionForm::kAbsorbed;
  }
  SchedulerOptions limits;
  limits.max_num_batched_tokens = std::min(options_.max_num_batched_tokens, max_logits_rows_);
  limits.max_num_seqs = limits.max_num_batched_tokens;  // the batch is bounded by tokens alone
  limits.max_tokens_per_sequence = options.decode ? 1 : options.chunk;
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
  count_preemptions(scheduler.preemptions());
}

void Engine::set_dbo(const std::string& dbo) {
  SplitPolicy policy = builder_->policy();
  policy.dbo = parse_dbo(dbo);
  if (policy.dbo && !parse_dbo(options_.dbo))
    throw Error(ErrorKind::kInvalidArgument,
                "dbo cannot be turned on: the model was loaded with dbo off, which reserves nothing for it");
  builder_->set_policy(policy);
}

void Engine::set_micro_batches(int micro_batches) {
  if (micro_batches < 2 || micro_batches > options_.micro_batches) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("micro-batches {}: the model was loaded for 2 to {}",
                                                         micro_batches, options_.micro_batches));
  }
  SplitPolicy policy = builder_->policy();
  policy.micro_batches = micro_batches;
  builder_->set_policy(policy);
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
  return s;
}

void Engine::reset_stats() {
  ranks_->reset_stats();
  counters_ = {};
}

}  // namespace duet
