#include "serve/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace duet {

namespace {

// vLLM's buckets, so that boards made for it show the same.
const std::vector<double> kFirstToken = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                                         1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
const std::vector<double> kNextToken = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                                        0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80};
const std::vector<double> kRequest = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                      30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
const std::vector<double> kTokens = {1,   2,    5,    10,   20,    50,    100,   200,
                                     500, 1000, 2000, 5000, 10000, 20000, 50000, 100000};

void head(std::string& out, const char* name, const char* kind, const char* help) {
  fmt::format_to(std::back_inserter(out), "# HELP {} {}\n# TYPE {} {}\n", name, help, name, kind);
}

void value(std::string& out, const char* name, const char* kind, const std::string& labels, double number,
           const char* help) {
  head(out, name, kind, help);
  fmt::format_to(std::back_inserter(out), "{}{{{}}} {}\n", name, labels, number);
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

}  // namespace

void Histogram::note(double value) {
  ++counts_[static_cast<size_t>(std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin())];
  sum_ += value;
}

void Histogram::write(std::string& out, const std::string& name, const std::string& labels,
                      const std::string& help) const {
  head(out, name.c_str(), "histogram", help.c_str());
  int64_t below = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    below += counts_[i];
    const std::string bound = i < bounds_.size() ? fmt::format("{}", bounds_[i]) : "+Inf";
    fmt::format_to(std::back_inserter(out), "{}_bucket{{{},le=\"{}\"}} {}\n", name, labels, bound, below);
  }
  fmt::format_to(std::back_inserter(out), "{0}_sum{{{1}}} {2}\n{0}_count{{{1}}} {3}\n", name, labels, sum_,
                 below);
}

ServerMetrics::ServerMetrics(std::string model)
    : model_(std::move(model)),
      first_token_(kFirstToken),
      next_token_(kNextToken),
      end_to_end_(kRequest),
      queued_(kRequest),
      prompt_sizes_(kTokens),
      generated_sizes_(kTokens) {
  // Series are there from the start, or the first events of a rate are lost.
  for (const char* reason : {"stop", "length", "abort", "error"}) finished_[reason] = 0;
}

void ServerMetrics::first_token(double seconds, double queued_seconds) {
  std::lock_guard lock(mutex_);
  first_token_.note(seconds);
  queued_.note(queued_seconds);
}

void ServerMetrics::next_token(double seconds) {
  std::lock_guard lock(mutex_);
  next_token_.note(seconds);
}

void ServerMetrics::request_done(const std::string& finish_reason, double seconds, int64_t prompt_tokens,
                                 int64_t generated_tokens) {
  std::lock_guard lock(mutex_);
  ++finished_[finish_reason];
  end_to_end_.note(seconds);
  prompt_sizes_.note(static_cast<double>(prompt_tokens));
  generated_sizes_.note(static_cast<double>(generated_tokens));
}

void ServerMetrics::generated(int64_t tokens) {
  std::lock_guard lock(mutex_);
  generated_tokens_ += tokens;
}

void ServerMetrics::prompt(int64_t tokens) {
  std::lock_guard lock(mutex_);
  prompt_tokens_ += tokens;
}

std::string ServerMetrics::text(const EngineLoad& load, const StepSums& steps, int64_t connections,
                                int64_t live_requests) const {
  std::lock_guard lock(mutex_);
  std::string out;
  const std::string labels = fmt::format("model_name=\"{}\",engine=\"0\"", escaped(model_));
  const auto gauge = [&](const char* name, double number, const char* help) {
    value(out, name, "gauge", labels, number, help);
  };
  const auto counter = [&](const char* name, auto number, const char* help) {
    value(out, name, "counter", labels, static_cast<double>(number), help);
  };
  gauge("vllm:num_requests_running", static_cast<double>(load.running), "Requests in the running batch.");
  gauge("vllm:num_requests_waiting", static_cast<double>(load.waiting), "Requests that wait to be run.");
  const double usage = load.kv_blocks > 0
                           ? static_cast<double>(load.kv_blocks_used) / static_cast<double>(load.kv_blocks)
                           : 0.0;
  gauge("vllm:kv_cache_usage_perc", usage, "Share of KV cache blocks in use, 1 is all.");
  gauge("vllm:gpu_cache_usage_perc", usage, "The same under its older name.");
  counter("vllm:prefix_cache_queries_total", load.prefix_queries, "Tokens looked up in the prefix cache.");
  counter("vllm:prefix_cache_hits_total", load.prefix_hits, "Tokens found in the prefix cache.");
  counter("vllm:num_preemptions_total", load.preemptions, "Preemptions.");
  counter("vllm:prompt_tokens_total", prompt_tokens_, "Prompt tokens of requests whose first token came.");
  counter("vllm:generation_tokens_total", generated_tokens_, "Tokens generated.");
  head(out, "vllm:request_success_total", "counter", "Requests that ended, by reason.");
  for (const auto& [reason, count] : finished_)
    fmt::format_to(std::back_inserter(out), "vllm:request_success_total{{{},finished_reason=\"{}\"}} {}\n",
                   labels, reason, count);
  first_token_.write(out, "vllm:time_to_first_token_seconds", labels, "Arrival to first token.");
  next_token_.write(out, "vllm:time_per_output_token_seconds", labels, "Between two tokens of a request.");
  next_token_.write(out, "vllm:inter_token_latency_seconds", labels, "The same under its newer name.");
  end_to_end_.write(out, "vllm:e2e_request_latency_seconds", labels, "Arrival to last token.");
  queued_.write(out, "vllm:request_queue_time_seconds", labels, "Arrival to the first step.");
  prompt_sizes_.write(out, "vllm:request_prompt_tokens", labels, "Prompt tokens of a request.");
  generated_sizes_.write(out, "vllm:request_generation_tokens", labels, "Generated tokens of a request.");
  counter("duet:steps_total", load.steps, "Steps.");
  counter("duet:steps_overlapped_total", load.steps_overlapped, "Steps that ran as micro-batches.");
  counter("duet:step_seconds_total", load.step_seconds, "Time inside steps, rank 0.");
  counter("duet:busy_seconds_total", load.busy_seconds, "Time with requests at hand, inside steps or not.");
  counter("duet:comm_lane_busy_seconds_total", load.comm_seconds, "The comm lane was busy, rank 0.");
  counter("duet:exposed_comm_seconds_total", load.exposed_seconds,
          "The compute lane waited for communication, rank 0.");
  head(out, "duet:lane_busy_seconds_total", "counter", "Inside stages, by lane, rank 0.");
  for (const Lane lane : {Lane::kCompute, Lane::kComm})
    fmt::format_to(std::back_inserter(out), "duet:lane_busy_seconds_total{{{},lane=\"{}\"}} {}\n", labels,
                   to_string(lane), steps.busy_seconds[static_cast<size_t>(lane)]);
  head(out, "duet:dbo_decisions_total", "counter", "Steps by what was decided of their overlap.");
  for (const auto& [reason, count] : steps.decisions)
    fmt::format_to(std::back_inserter(out), "duet:dbo_decisions_total{{{},reason=\"{}\"}} {}\n", labels,
                   escaped(reason), count);
  gauge("duet:kv_blocks", static_cast<double>(load.kv_blocks), "Blocks of the KV cache.");
  gauge("duet:kv_blocks_used", static_cast<double>(load.kv_blocks_used), "Of these, held by requests.");
  gauge("duet:connections", static_cast<double>(connections), "Open HTTP connections.");
  gauge("duet:live_requests", static_cast<double>(live_requests), "Generation requests not yet answered.");
  return out;
}

}  // namespace duet
