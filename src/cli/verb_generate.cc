// duet generate: prompts in, continuations out, and what the run measured.
#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>

#include "base/clock.h"
#include "base/json_text.h"
#include "cli/cli.h"
#include "cli/flags.h"
#include "cli/options.h"
#include "cli/output_file.h"
#include "cli/progress.h"
#include "cli/prompts.h"
#include "cli/report.h"
#include "cli/usage_error.h"
#include "cli/verbs.h"
#include "duet/llm.h"

namespace duet {
namespace {

using nlohmann::ordered_json;

ordered_json logprobs_json(const Completion& completion) {
  ordered_json rows = ordered_json::array();
  for (const TokenLogprob& token : completion.logprobs) {
    ordered_json top = ordered_json::array();
    for (const auto& [id, logprob] : token.top) top.push_back({{"token_id", id}, {"logprob", logprob}});
    rows.push_back({{"token_id", token.token_id}, {"logprob", token.logprob}, {"top", std::move(top)}});
  }
  return rows;
}

void write_lines(const RequestOutput& output, bool with_index, bool with_logprobs, std::ostream& out) {
  for (size_t i = 0; i < output.completions.size(); ++i) {
    const Completion& completion = output.completions[i];
    ordered_json row;
    row["prompt"] = output.prompt.empty() ? ordered_json(nullptr) : ordered_json(output.prompt);
    row["prompt_token_ids"] = output.prompt_token_ids;
    if (with_index) row["index"] = i;
    row["text"] = completion.text;
    row["token_ids"] = completion.token_ids;
    row["finish_reason"] = completion.finish_reason;
    if (with_logprobs) row["logprobs"] = logprobs_json(completion);
    out << json_text(row) << '\n';
  }
}

std::string join_ids(const std::vector<int32_t>& ids) {
  return fmt::format("{}", fmt::join(ids, ","));
}

// For a reader at a terminal: prompt and text run on, as the model saw them; of a chat the answer alone.
void write_readable(const RequestOutput& output, size_t number, size_t count, bool chat, bool without_text,
                    std::ostream& out) {
  for (size_t i = 0; i < output.completions.size(); ++i) {
    const Completion& completion = output.completions[i];
    if (count > 1 || output.completions.size() > 1) {
      out << fmt::format("--- {}/{}", number + 1, count);
      if (output.completions.size() > 1) out << fmt::format(", continuation {}", i);
      out << '\n';
    }
    if (without_text) {
      out << join_ids(output.prompt_token_ids) << " -> " << join_ids(completion.token_ids);
    } else if (chat || output.prompt.empty()) {
      out << completion.text;
    } else {
      out << output.prompt << completion.text;
    }
    out << fmt::format("\n[{} tokens, {}]\n", completion.token_ids.size(), completion.finish_reason);
  }
}

struct Outputs {
  std::unique_ptr<OutputFile> lines;
  std::unique_ptr<OutputFile> report;
};

Outputs open_outputs(const Flags& flags, const CliContext& context) {
  Outputs files;
  if (flags.given("output")) files.lines = std::make_unique<OutputFile>(flags.text("output"), context.out);
  // Written after the run, which may have taken hours: better to know now that it cannot be.
  if (flags.given("trace")) OutputFile(flags.text("trace"), context.out);
  if (flags.given("json")) files.report = std::make_unique<OutputFile>(flags.text("json"), context.out);
  return files;
}

void write_results(const Flags& flags, const std::vector<Prompt>& prompts,
                   const std::vector<RequestOutput>& results, bool without_text, Outputs& files,
                   const CliContext& context) {
  const bool with_index = flags.integer("n") > 1;
  const bool with_logprobs = flags.given("logprobs");
  for (size_t i = 0; i < results.size(); ++i) {
    if (files.lines) {
      write_lines(results[i], with_index, with_logprobs, files.lines->stream());
    } else {
      write_readable(results[i], i, results.size(), !prompts[i].messages_json.empty(), without_text,
                     context.out);
    }
  }
  if (files.lines) files.lines->commit();
  context.out.flush();
}

}  // namespace

int verb_generate(const Flags& flags, const CliContext& context) {
  LlmOptions options = llm_options(flags);
  options.skip_tokenizer_init = is_mpi_worker();  // text is rank 0's business
  const SamplingParams params = sampling_params(flags);
  std::vector<Prompt> prompts;
  Outputs files;
  if (!is_mpi_worker()) {
    prompts = prompts_from_flags(flags, flags.boolean("chat"));
    options.skip_tokenizer_init = only_token_ids(prompts) && lacks_tokenizer(options);
    if (options.skip_tokenizer_init && !params.stop.empty()) {
      throw UsageError(
          fmt::format("{} needs text, but {} has no tokenizer.json; use --stop-token-ids or --tokenizer DIR",
                      flags.shown("stop"), options.model));
    }
    files = open_outputs(flags, context);
  }
  ProgressView view(context);
  const int64_t start = now_ns();
  const std::unique_ptr<Llm> llm = Llm::load(options, [&](double fraction) { view.loading(fraction); });
  if (!llm) return kExitOk;
  const int64_t loaded = now_ns();
  view.clear();
  const std::vector<RequestOutput> results =
      llm->generate(prompts, {params}, [&](const Progress& progress) { view.generating(progress); });
  const int64_t done = now_ns();
  view.clear();
  write_results(flags, prompts, results, options.skip_tokenizer_init, files, context);
  const LlmStats stats = llm->stats();
  if (flags.given("trace")) llm->write_trace(flags.text("trace"));
  context.err << report_text(stats, options.tensor_parallel_size);
  if (files.report) {
    nlohmann::json report = report_json(stats, options);
    report["requests"] = prompts.size();
    report["load_seconds"] = static_cast<double>(loaded - start) * 1e-9;
    report["generate_seconds"] = static_cast<double>(done - loaded) * 1e-9;
    files.report->stream() << json_text(report, 2) << '\n';
    files.report->commit();
  }
  return kExitOk;
}

}  // namespace duet
