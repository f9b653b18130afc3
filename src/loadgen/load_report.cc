#include "loadgen/load_report.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

namespace duet {

namespace {

using Json = nlohmann::ordered_json;

const char* long_name(const std::string& metric) {
  if (metric == "ttft") return "Time to First Token";
  if (metric == "tpot") return "Time per Output Token (excl. 1st token)";
  if (metric == "itl") return "Inter-token Latency";
  return "End-to-end Latency";
}

std::string upper(std::string text) {
  for (char& c : text) c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  return text;
}

std::string whole(const char* name, int64_t value) {
  return fmt::format("{:<40} {:<10}\n", name, value);
}
std::string number(const std::string& name, double value) {
  return fmt::format("{:<40} {:<10.2f}\n", name, value);
}

}  // namespace

std::string percentile_name(double percentile) {
  return fmt::format("{}", percentile);
}

std::string load_table(const LoadReport& report) {
  const LoadFigures& f = report.figures;
  std::string out = fmt::format("{:=^50}\n", " Serving Benchmark Result ");
  out += whole("Successful requests:", f.completed);
  out += whole("Failed requests:", f.failed);
  if (report.plan.max_concurrency > 0)
    out += whole("Maximum request concurrency:", report.plan.max_concurrency);
  if (!std::isinf(report.plan.request_rate))
    out += number("Request rate configured (RPS):", report.plan.request_rate);
  out += number("Benchmark duration (s):", f.duration);
  out += whole("Total input tokens:", f.input_tokens);
  out += whole("Total generated tokens:", f.output_tokens);
  out += number("Request throughput (req/s):", f.request_throughput);
  if (report.with_goodput) out += number("Request goodput (req/s):", f.request_goodput);
  out += number("Output token throughput (tok/s):", f.output_throughput);
  out += number("Peak output token throughput (tok/s):", f.peak_output_throughput);
  out += whole("Peak concurrent requests:", f.peak_concurrency);
  out += number("Total Token throughput (tok/s):", f.total_throughput);
  for (const std::string& metric : report.metrics) {
    const LatencyFigures& l = f.latencies.at(metric);
    const std::string name = upper(metric);
    out += fmt::format("{:-^50}\n", long_name(metric));
    out += number(fmt::format("Mean {} (ms):", name), l.mean);
    out += number(fmt::format("Median {} (ms):", name), l.median);
    for (const auto& [p, value] : l.percentiles)
      out += number(fmt::format("P{} {} (ms):", percentile_name(p), name), value);
  }
  return out + std::string(50, '=') + '\n';
}

Json load_json(const LoadReport& report, const LoadRun& run, bool detailed) {
  const LoadFigures& f = report.figures;
  Json json;
  json["date"] = report.date;
  json["backend"] = report.backend;
  json["endpoint_type"] = report.backend;
  json["label"] = report.label.empty() ? Json(nullptr) : Json(report.label);
  json["model_id"] = report.model;
  json["tokenizer_id"] = report.tokenizer;
  json["num_prompts"] = report.num_prompts;
  json["request_rate"] = std::isinf(report.plan.request_rate) ? Json("inf") : Json(report.plan.request_rate);
  json["burstiness"] = report.plan.burstiness;
  json["max_concurrency"] =
      report.plan.max_concurrency > 0 ? Json(report.plan.max_concurrency) : Json(nullptr);
  json["duration"] = f.duration;
  json["completed"] = f.completed;
  json["failed"] = f.failed;
  json["total_input_tokens"] = f.input_tokens;
  json["total_output_tokens"] = f.output_tokens;
  json["request_throughput"] = f.request_throughput;
  json["request_goodput"] = report.with_goodput ? Json(f.request_goodput) : Json(nullptr);
  json["output_throughput"] = f.output_throughput;
  json["total_token_throughput"] = f.total_throughput;
  json["max_output_tokens_per_s"] = f.peak_output_throughput;
  json["max_concurrent_requests"] = f.peak_concurrency;
  if (detailed) {
    for (const char* key : {"input_lens", "output_lens", "ttfts", "itls", "generated_texts", "errors"})
      json[key] = Json::array();
    for (const LoadResult& r : run.results) {
      json["input_lens"].push_back(r.prompt_tokens);
      json["output_lens"].push_back(r.success ? r.output_tokens : 0);
      json["ttfts"].push_back(r.ttft);
      json["itls"].push_back(r.itl);
      json["generated_texts"].push_back(r.text);
      json["errors"].push_back(r.error);
    }
  }
  for (const std::string& metric : report.metrics) {
    const LatencyFigures& l = f.latencies.at(metric);
    json["mean_" + metric + "_ms"] = l.mean;
    json["median_" + metric + "_ms"] = l.median;
    json["std_" + metric + "_ms"] = l.deviation;
    for (const auto& [p, value] : l.percentiles)
      json[fmt::format("p{}_{}_ms", percentile_name(p), metric)] = value;
  }
  return json;
}

}  // namespace duet
