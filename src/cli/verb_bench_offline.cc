// duet bench throughput and duet bench latency: whole requests through the engine of this process,
// reported as vLLM's benchmarks of the same names do.
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <ostream>

#include "base/clock.h"
#include "base/json_text.h"
#include "cli/cli.h"
#include "cli/flags.h"
#include "cli/load_options.h"
#include "cli/options.h"
#include "cli/output_file.h"
#include "cli/progress.h"
#include "cli/verbs.h"
#include "loadgen/load_report.h"

namespace duet {
namespace {

using nlohmann::ordered_json;

SamplingParams params_for(const Flags& flags, int64_t output_tokens) {
  SamplingParams p = sampling_params(flags);
  p.max_tokens = static_cast<int>(output_tokens);
  if (!p.temperature) p.temperature = 1.0;
  p.ignore_eos = true;
  return p;
}

PromptSource source_of(const Flags& flags, LlmOptions& options) {
  PromptSource source = find_prompt_source({flags.text("tokenizer"), options.model});
  options.skip_tokenizer_init = !source.tokenizer || is_mpi_worker();
  return source;
}

std::unique_ptr<OutputFile> json_file(const Flags& flags, const CliContext& context) {
  if (!flags.given("output-json") || is_mpi_worker()) return nullptr;
  return std::make_unique<OutputFile>(flags.text("output-json"), context.out);
}

void write(OutputFile& file, const ordered_json& report) {
  file.stream() << json_text(report, 2) << '\n';
  file.commit();
}

}  // namespace

int verb_bench_throughput(const Flags& flags, const CliContext& context) {
  LlmOptions options = llm_options(flags);
  const PromptSource source = source_of(flags, options);
  std::vector<LoadRequest> requests;
  if (!is_mpi_worker())
    requests = make_dataset(dataset_options(flags), source.tokenizer.get(), source.vocab_size);
  std::vector<Prompt> prompts;
  std::vector<SamplingParams> params;
  for (const LoadRequest& request : requests) {
    Prompt prompt;
    prompt.text = request.prompt;
    prompt.token_ids = request.prompt_ids;
    prompts.push_back(std::move(prompt));
    params.push_back(params_for(flags, request.output_tokens));
  }
  const std::unique_ptr<OutputFile> file = json_file(flags, context);
  ProgressView view(context);
  const std::unique_ptr<Llm> llm = Llm::load(options, [&](double fraction) { view.loading(fraction); });
  if (!llm) return kExitOk;
  view.clear();
  const int64_t begin = now_ns();
  const std::vector<RequestOutput> results =
      llm->generate(prompts, params, [&](const Progress& progress) { view.generating(progress); });
  const double seconds = static_cast<double>(now_ns() - begin) * 1e-9;
  view.clear();
  int64_t prompt_tokens = 0, output_tokens = 0;
  for (const RequestOutput& result : results) {
    prompt_tokens += static_cast<int64_t>(result.prompt_token_ids.size());
    for (const Completion& c : result.completions) output_tokens += static_cast<int64_t>(c.token_ids.size());
  }
  const auto per_second = [&](int64_t count) { return static_cast<double>(count) / seconds; };
  const int64_t total = prompt_tokens + output_tokens;
  const auto count = static_cast<int64_t>(results.size());
  context.out << fmt::format(
      "Throughput: {:.2f} requests/s, {:.2f} total tokens/s, {:.2f} output tokens/s\n"
      "Total num prompt tokens:  {}\nTotal num output tokens:  {}\n",
      per_second(count), per_second(total), per_second(output_tokens), prompt_tokens, output_tokens);
  if (file)
    write(*file, {{"elapsed_time", seconds},
                  {"num_requests", count},
                  {"total_num_tokens", total},
                  {"requests_per_second", per_second(count)},
                  {"tokens_per_second", per_second(total)},
                  {"output_tokens_per_second", per_second(output_tokens)}});
  return kExitOk;
}

int verb_bench_latency(const Flags& flags, const CliContext& context) {
  LlmOptions options = llm_options(flags);
  const PromptSource source = source_of(flags, options);
  DatasetOptions dataset;
  dataset.num_prompts = flags.integer("batch-size");
  dataset.random_input_len = flags.integer("input-len");
  dataset.random_output_len = flags.integer("output-len");
  dataset.seed = options.seed;
  std::vector<Prompt> prompts;
  // Token ids, so that every prompt has exactly the length that was asked for.
  for (const LoadRequest& request : make_dataset(dataset, nullptr, source.vocab_size)) {
    Prompt prompt;
    prompt.token_ids = request.prompt_ids;
    prompts.push_back(std::move(prompt));
  }
  const SamplingParams params = params_for(flags, dataset.random_output_len);
  const std::unique_ptr<OutputFile> file = json_file(flags, context);
  ProgressView view(context);
  const std::unique_ptr<Llm> llm = Llm::load(options, [&](double fraction) { view.loading(fraction); });
  if (!llm) return kExitOk;
  const int64_t warmups = flags.integer("num-iters-warmup"), repeats = flags.integer("num-iters");
  std::vector<double> seconds;
  for (int64_t i = 0; i < warmups + repeats; ++i) {
    const int64_t begin = now_ns();
    llm->generate(prompts, {params});
    if (i >= warmups) seconds.push_back(static_cast<double>(now_ns() - begin) * 1e-9);
    view.measuring("batches", static_cast<double>(i + 1) / static_cast<double>(warmups + repeats));
  }
  view.clear();
  const LatencyFigures figures = latency_figures(seconds, {10, 25, 50, 75, 90, 99});
  context.out << fmt::format("Avg latency: {} seconds\n", figures.mean * 1e-3);
  ordered_json percentiles;
  for (const auto& [p, ms] : figures.percentiles) {
    context.out << fmt::format("{}% percentile latency: {} seconds\n", percentile_name(p), ms * 1e-3);
    percentiles[percentile_name(p)] = ms * 1e-3;
  }
  context.out << std::flush;
  if (file)
    write(*file,
          {{"avg_latency", figures.mean * 1e-3}, {"latencies", seconds}, {"percentiles", percentiles}});
  return kExitOk;
}

}  // namespace duet
