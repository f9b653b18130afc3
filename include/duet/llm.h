// Duet's C++ API for embedding: load a model on one or several ranks and generate text. The CLI is
// built on it. An Llm belongs to one thread at a time. Errors are duet::LlmError, with a text made
// for a user.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace duet {

/// Everything that can be set when a model is loaded. Names and defaults are those of the flags of
/// `duet generate` (docs/flags.md); strings take the same values.
struct LlmOptions {
  std::string model;                 // Hugging Face directory (or a config.json with load_format "dummy")
  std::string tokenizer;             // empty: the model's directory
  std::string chat_template;         // a file; empty: the tokenizer's own
  std::string load_format = "auto";  // auto | dummy
  uint64_t dummy_seed = 0;
  std::string dtype = "auto";  // auto | float32 | bfloat16 | half
  std::string quantization;    // "w8a8": int8 weights and inputs, made while loading; empty: as stored
  bool float_head = false;     // with quantization: kv_b_proj and the head stay in floating point
  std::string kv_cache_dtype = "auto";  // auto | int8 (latent attention only)
  int tensor_parallel_size = 1;
  std::string distributed_executor_backend;  // threads | mpi; empty: mpi under mpirun, else threads
  std::string comm_transport = "auto";       // auto | mpi | tcp: how MPI ranks exchange data
  int threads = 0;                           // per rank; 0: cores / ranks
  std::string expert_path = "all-reduce";    // all-reduce | all-to-all
  bool enable_expert_parallel = false;
  std::string comm_dtype = "bf16";  // f32 | bf16
  std::string link_bandwidth;       // "1gbit": shape the link between thread ranks
  std::string link_latency;         // "50us"
  std::string dbo = "auto";         // off | on | auto
  int micro_batches = 0;            // of a split step; 0: as many as are predicted to be fastest
  int64_t dbo_prefill_token_threshold = 512;
  int64_t dbo_decode_token_threshold = 32;
  double dbo_imbalance = 0.1;
  std::string dbo_cost_cache = "auto";  // where measured costs are kept: auto (XDG's cache), off, a directory
  int64_t split_at = 0;  // > 0: the first micro-batch gets so many rows of every step, thresholds ignored
  int64_t max_num_batched_tokens = 2048;
  int64_t max_num_seqs = 256;
  int64_t max_model_len = 0;  // 0: the model's
  int block_size = 16;
  std::string kv_cache_memory;            // "4GiB"; empty: a sane default
  bool enable_prefix_caching = false;     // prompts that begin like earlier ones start behind the common part
  bool prefix_cache_prompt_only = false;  // … but never take what decoding wrote, so that no bit changes
  std::string generation_config = "auto";  // auto | vllm: where sampling defaults come from
  bool skip_tokenizer_init = false;        // token ids in, token ids out
  bool control_tokens_in_content = true;   // false: a user's text cannot form control tokens
  uint64_t seed = 0;                       // of requests that name none
  bool all_logits = false;                 // for logits(): room for the logits of every row of a step
  bool trace = false;
};

/// Unset fields take generation_config.json's values, else those of vLLM (temperature 1 …).
struct SamplingParams {
  std::optional<double> temperature;  // 0: greedy
  std::optional<double> top_p;
  std::optional<int> top_k;  // 0 or -1: all
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;  // 1: none
  double presence_penalty = 0;
  double frequency_penalty = 0;
  std::optional<uint64_t> seed;  // unset: derived from LlmOptions::seed and the request's number since load
  int n = 1;                     // continuations per prompt
  int max_tokens = 16;
  int min_tokens = 0;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  bool skip_special_tokens = true;
  std::optional<int> logprobs;  // this many of the likeliest tokens at each position, besides the chosen
  std::optional<int> prompt_logprobs;                  // the same for each token of the prompt but the first
  std::vector<std::pair<int32_t, double>> logit_bias;  // added to the logits of these tokens
  bool include_stop_str_in_output = false;             // the text ends behind a stop string, not before it
};

/// One of: text (tokenised with the model's BOS rule), token_ids, messages (a JSON array of chat
/// messages, put through the chat template with a generation prompt).
struct Prompt {
  std::string text;
  std::vector<int32_t> token_ids;
  std::string messages_json;
  bool add_special_tokens = true;         // of text: the BOS rule
  bool add_generation_prompt = true;      // of messages
  std::string template_variables_json{};  // of messages: an object of further variables for the template
};

struct TokenLogprob {
  int32_t token_id = 0;
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;  // likeliest first
};

struct Completion {
  std::string text;
  std::vector<int32_t> token_ids;
  std::string finish_reason;   // "stop" | "length"
  std::string stop_string;     // which stop string or …
  int32_t stop_token_id = -1;  // … which of SamplingParams::stop_token_ids ended it
  std::vector<TokenLogprob> logprobs;
};

struct RequestOutput {
  std::string prompt;  // the text that was tokenised; empty for token ids
  std::vector<int32_t> prompt_token_ids;
  std::vector<Completion> completions;        // n of them
  std::vector<TokenLogprob> prompt_logprobs;  // of prompt tokens 1, 2, …
  int64_t cached_tokens = 0;                  // of the prompt, found in the prefix cache
};

/// What a run measured (docs/overlap.md explains the words).
struct LlmStats {
  int64_t prefill_tokens = 0, decode_tokens = 0;
  // What rank 0 spent on steps, sampling and text included; the time of a step with both kinds of
  // tokens is shared out by their number, so tokens / seconds are honest rates.
  double prefill_seconds = 0, decode_seconds = 0;
  int64_t steps = 0, steps_overlapped = 0, preemptions = 0;
  double step_ms = 0, compute_ms = 0, comm_ms = 0, exposed_ms = 0, hidden_share = 1;
  struct Kind {
    std::string kind;
    bool comm = false;
    int64_t count = 0;
    double ms = 0;
  };
  std::vector<Kind> kinds;
  /// Steps by what was decided of them; sums over those steps, predictions 0 where nothing was known.
  struct Decision {
    std::string reason;  // "whole is faster", "3 micro-batches are faster", "off", …
    int micro_batches = 1;
    int64_t steps = 0;
    double predicted_ms = 0;        // as decided …
    double predicted_whole_ms = 0;  // … and had they been left whole
    double measured_ms = 0;
  };
  std::vector<Decision> decisions;
};

struct Progress {
  int64_t requests_done = 0, requests = 0;
  int64_t prefill_tokens = 0, decode_tokens = 0;
  double seconds = 0;
  double exposed_ms = 0, step_ms = 0;
};

struct LogitsOptions {
  int64_t chunk = 0;    // > 0: prefill in chunks of so many tokens per prompt
  bool decode = false;  // tokens one by one through the decode path
};

class LlmError : public std::runtime_error {
 public:
  LlmError(std::string kind, const std::string& message)
      : std::runtime_error(message), kind_(std::move(kind)) {}
  /// "invalid argument", "not found", "corrupt file", … as duet::to_string(ErrorKind) names them.
  const std::string& kind() const { return kind_; }

 private:
  std::string kind_;
};

class Llm {
 public:
  /// Null on an MPI rank other than 0, after the job's work is done: return from main then.
  /// `progress(fraction)` is called while weights load.
  static std::unique_ptr<Llm> load(const LlmOptions& options,
                                   const std::function<void(double)>& progress = {});
  ~Llm();
  Llm(const Llm&) = delete;
  Llm& operator=(const Llm&) = delete;

  /// One SamplingParams for all, or one per prompt. Results in the order of the prompts.
  std::vector<RequestOutput> generate(const std::vector<Prompt>& prompts,
                                      const std::vector<SamplingParams>& params,
                                      const std::function<void(const Progress&)>& progress = {});

  /// Every logit of every prompt: sink(prompt index, first row, rows, logits [rows, vocab]) in
  /// ascending order of rows for each prompt. The prompts form one batch, in order, up to
  /// max_num_batched_tokens.
  void logits(const std::vector<Prompt>& prompts, const LogitsOptions& options,
              const std::function<void(size_t, int64_t, int64_t, const float*)>& sink);

  /// Token ids of a prompt as generate() would use them.
  std::vector<int32_t> tokenize(const Prompt& prompt, std::string* text = nullptr) const;
  int64_t vocab_size() const;
  int64_t max_model_len() const;

  LlmStats stats();
  void reset_stats();
  void write_trace(const std::string& path);
  /// From the next step on; "on" and "auto" need a model that was not loaded with dbo "off".
  void set_dbo(const std::string& dbo);
  /// Parts that a split step has from now on: 2 up to LlmOptions::micro_batches, or 0.
  void set_micro_batches(int micro_batches);

 private:
  struct Impl;
  explicit Llm(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace duet
