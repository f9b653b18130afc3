// duet bench serve: load on any OpenAI server, measured at the client.
#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <ostream>

#include "base/error.h"
#include "base/json_text.h"
#include "cli/cli.h"
#include "cli/flags.h"
#include "cli/load_options.h"
#include "cli/output_file.h"
#include "cli/progress.h"
#include "cli/usage_error.h"
#include "cli/verbs.h"
#include "loadgen/load_report.h"

namespace duet {
namespace {

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  for (size_t start = 0; start <= text.size();) {
    const size_t end = std::min(text.find(at, start), text.size());
    if (end > start) parts.push_back(text.substr(start, end - start));
    start = end + 1;
  }
  return parts;
}

double positive_number(const std::string& text, const std::string& shown, const char* expected) {
  double value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size() || !(value > 0)) {
    throw UsageError(fmt::format("{} is \"{}\"; expected {}", shown, text, expected));
  }
  return value;
}

LoadPlan plan_of(const Flags& flags) {
  LoadPlan plan;
  plan.request_rate =
      positive_number(flags.text("request-rate"), flags.shown("request-rate"), "a rate above 0, or inf");
  plan.burstiness = flags.number("burstiness");
  plan.max_concurrency = flags.integer("max-concurrency");
  plan.seed = static_cast<uint64_t>(flags.integer("seed"));
  return plan;
}

std::map<std::string, double> goodput_of(const Flags& flags) {
  std::map<std::string, double> limits;
  for (const std::string& item : flags.list("goodput")) {
    const size_t colon = item.find(':');
    const std::string name = item.substr(0, colon);
    if (colon == std::string::npos || (name != "ttft" && name != "tpot" && name != "e2el")) {
      throw UsageError(
          fmt::format("{} \"{}\": expected ttft:MS, tpot:MS or e2el:MS", flags.shown("goodput"), item));
    }
    limits[name] = positive_number(item.substr(colon + 1), flags.shown("goodput"), "milliseconds above 0");
  }
  return limits;
}

std::vector<std::string> metrics_of(const Flags& flags) {
  const std::vector<std::string> names = split(flags.text("percentile-metrics"), ',');
  for (const std::string& name : names) {
    if (name == "ttft" || name == "tpot" || name == "itl" || name == "e2el") continue;
    throw UsageError(fmt::format("{}: \"{}\" is unknown; expected ttft, tpot, itl, e2el",
                                 flags.shown("percentile-metrics"), name));
  }
  return names;
}

OpenAiTarget target_of(const Flags& flags, const CliContext& context) {
  OpenAiTarget t;
  const std::string host = flags.text("host");
  const std::string url =
      flags.given("base-url")
          ? flags.text("base-url")
          : fmt::format("http://{}:{}", host.find(':') != std::string::npos ? "[" + host + "]" : host,
                        flags.integer("port"));
  t.server = parse_url(url);
  t.chat = flags.text("backend") == "openai-chat";
  t.endpoint = flags.text("endpoint");
  if (t.endpoint.empty()) t.endpoint = t.chat ? "/v1/chat/completions" : "/v1/completions";
  if (!t.endpoint.starts_with('/')) t.endpoint = "/" + t.endpoint;
  // The variable that OpenAI's own clients read.
  if (const auto key = context.env.find("OPENAI_API_KEY"); key != context.env.end())
    t.headers = fmt::format("Authorization: Bearer {}\r\n", key->second);
  t.temperature = flags.number("temperature");
  if (flags.given("top-p")) t.top_p = flags.number("top-p");
  if (flags.given("top-k")) t.top_k = flags.integer("top-k");
  if (flags.given("logprobs")) t.logprobs = flags.integer("logprobs");
  t.ignore_eos = flags.boolean("ignore-eos");
  t.patience_seconds = flags.integer("request-timeout");
  return t;
}

std::string date_now() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char text[32];
  std::strftime(text, sizeof text, "%Y%m%d-%H%M%S", &local);
  return text;
}

std::string result_path(const Flags& flags, const LoadReport& report) {
  std::filesystem::path name = flags.text("result-filename");
  if (name.empty()) {
    const std::string rate =
        std::isinf(report.plan.request_rate) ? "inf" : fmt::format("{}", report.plan.request_rate);
    const std::string concurrency = report.plan.max_concurrency > 0
                                        ? fmt::format("-concurrency{}", report.plan.max_concurrency)
                                        : std::string();
    name = fmt::format("{}-{}qps{}-{}-{}.json", report.label.empty() ? report.backend : report.label, rate,
                       concurrency, std::filesystem::path(report.model).filename().string(), report.date);
  }
  return (std::filesystem::path(flags.text("result-dir")) / name).string();
}

// One request before all: a server that refuses is named at once, with its own words.
void try_server(const OpenAiTarget& target, const std::vector<LoadRequest>& requests, int64_t warmups) {
  for (int64_t i = 0; i <= warmups; ++i) {
    const LoadResult result = send_request(target, requests[static_cast<size_t>(i) % requests.size()]);
    if (!result.success)
      throw Error(ErrorKind::kPeer, fmt::format("the first request to {}://{}:{}{}{} failed: {}",
                                                target.server.scheme, target.server.host, target.server.port,
                                                target.server.path, target.endpoint, result.error));
  }
}

}  // namespace

int verb_bench_serve(const Flags& flags, const CliContext& context) {
  LoadReport report;
  report.plan = plan_of(flags);
  report.metrics = metrics_of(flags);
  const std::vector<double> percentiles = percentile_list(flags);
  const std::map<std::string, double> goodput = goodput_of(flags);
  report.with_goodput = !goodput.empty();
  const DatasetOptions dataset = dataset_options(flags);
  OpenAiTarget target = target_of(flags, context);

  const std::string named = flags.text("model");
  const ServedModel served = named.empty() ? first_model(target) : ServedModel{named, named};
  target.model = flags.given("served-model-name") ? flags.text("served-model-name") : served.id;
  const PromptSource source =
      find_prompt_source(flags.given("tokenizer") ? std::vector<std::string>{flags.text("tokenizer")}
                                                  : std::vector<std::string>{served.root, served.id});
  if (target.chat && !source.tokenizer && dataset.name == "random")
    throw UsageError("random prompts for openai-chat are text and need a tokenizer; give --tokenizer DIR");
  report.date = date_now();
  report.backend = flags.text("backend");
  report.label = flags.text("label");
  report.model = served.id;
  report.tokenizer = source.path;
  report.num_prompts = dataset.num_prompts;
  std::unique_ptr<OutputFile> file;
  if (flags.boolean("save-result"))
    file = std::make_unique<OutputFile>(result_path(flags, report), context.out);

  const std::vector<LoadRequest> requests = make_dataset(dataset, source.tokenizer.get(), source.vocab_size);
  try_server(target, requests, flags.integer("num-warmups"));
  ProgressView view(context);
  std::mutex mutex;
  const LoadRun run = run_load(target, requests, report.plan, [&](int64_t done) {
    std::lock_guard lock(mutex);
    view.measuring("requests", static_cast<double>(done) / static_cast<double>(requests.size()));
  });
  view.clear();
  report.figures = load_figures(run, percentiles, goodput);
  context.out << load_table(report) << std::flush;
  if (file) {
    file->stream() << json_text(load_json(report, run, flags.boolean("save-detailed")), 2) << '\n';
    file->commit();
  }
  if (report.figures.failed == 0) return kExitOk;
  for (const LoadResult& result : run.results) {
    if (result.success) continue;
    context.err << fmt::format("duet bench serve: {} of {} requests failed; the first: {}\n",
                               report.figures.failed, requests.size(), result.error);
    break;
  }
  return kExitError;
}

}  // namespace duet
