// The load generator without a server: when requests leave, what figures come of results, the datasets.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "http/http_client.h"
#include "loadgen/dataset.h"
#include "loadgen/load_report.h"
#include "loadgen/load_run.h"
#include "text/tokenizer.h"

namespace duet {
namespace {

using ::testing::HasSubstr;

double variation(const std::vector<double>& times) {
  double sum = 0, squares = 0, before = 0;
  for (const double t : times) {
    sum += t - before;
    squares += (t - before) * (t - before);
    before = t;
  }
  const auto n = static_cast<double>(times.size());
  return std::sqrt(squares / n - sum * sum / n / n) / (sum / n);
}

TEST(LoadRun, DeparturesKeepTheRateAndTheBurstiness) {
  LoadPlan plan;
  plan.request_rate = 20;
  plan.seed = 3;
  const std::vector<double> poisson = departure_times(plan, 4000);
  EXPECT_NEAR(poisson.back(), 200, 1e-6);
  // The coefficient of variation of gamma gaps is 1 / sqrt(burstiness); of 4000 samples, within 10 %.
  EXPECT_NEAR(variation(poisson), 1, 0.1);
  plan.burstiness = 4;
  EXPECT_NEAR(variation(departure_times(plan, 4000)), 0.5, 0.05);
  EXPECT_EQ(departure_times(plan, 50), departure_times(plan, 50));
  plan.request_rate = std::numeric_limits<double>::infinity();
  EXPECT_EQ(departure_times(plan, 3), (std::vector<double>{0, 0, 0}));
}

LoadResult result(double ttft, std::vector<double> itl, int64_t tokens) {
  LoadResult r;
  r.success = true;
  r.sent_ns = 1'000'000'000;
  r.prompt_tokens = 10;
  r.output_tokens = tokens;
  r.ttft = ttft;
  r.latency = ttft;
  for (const double gap : itl) r.latency += gap;
  r.itl = std::move(itl);
  return r;
}

TEST(LoadRun, Figures) {
  LoadRun run;
  run.seconds = 2;
  run.results = {result(0.1, {0.2, 0.2}, 3), result(0.3, {}, 1), result(0.2, {0.4}, 2)};
  run.results.push_back(result(9, {9}, 9));
  run.results.back().success = false;
  const LoadFigures f = load_figures(run, {90}, {{"ttft", 250}});
  EXPECT_EQ(f.completed, 3);
  EXPECT_EQ(f.failed, 1);
  EXPECT_EQ(f.input_tokens, 30);
  EXPECT_EQ(f.output_tokens, 6);
  EXPECT_DOUBLE_EQ(f.request_throughput, 1.5);
  EXPECT_DOUBLE_EQ(f.request_goodput, 1.0);  // the second took 300 ms
  EXPECT_DOUBLE_EQ(f.total_throughput, 18);
  EXPECT_EQ(f.peak_concurrency, 3);
  EXPECT_NEAR(f.peak_output_throughput, 6, 1e-9);
  EXPECT_NEAR(f.latencies.at("ttft").mean, 200, 1e-9);
  EXPECT_NEAR(f.latencies.at("ttft").median, 200, 1e-9);
  EXPECT_NEAR(f.latencies.at("ttft").percentiles[0].second, 280, 1e-9);  // between 200 and 300
  EXPECT_NEAR(f.latencies.at("tpot").mean, 300, 1e-9);                   // of 200 and 400: one token has none
  EXPECT_NEAR(f.latencies.at("e2el").mean, (500 + 300 + 600) / 3.0, 1e-9);
  LoadReport report;
  report.figures = f;
  report.metrics = {"ttft", "e2el"};
  const std::string table = load_table(report);
  EXPECT_THAT(table, HasSubstr("============ Serving Benchmark Result ============\n"));
  EXPECT_THAT(table, HasSubstr("Mean TTFT (ms):                          200.00    \n"));
  EXPECT_THAT(table, HasSubstr("---------------Time to First Token----------------\n"));
  EXPECT_THAT(table, HasSubstr("P90 E2EL (ms):"));
  const auto json = load_json(report, run, true);
  EXPECT_EQ(json["request_rate"], "inf");
  EXPECT_EQ(json["output_lens"].size(), 4u);
  EXPECT_NEAR(json["p90_ttft_ms"].get<double>(), 280, 1e-9);
  EXPECT_FALSE(load_json(report, run, false).contains("ttfts"));
}

TEST(LoadRun, NoSuccessIsAllZeros) {
  LoadRun run;
  run.seconds = 1;
  run.results.resize(2);
  const LoadFigures f = load_figures(run, {99}, {});
  EXPECT_EQ(f.completed, 0);
  EXPECT_EQ(f.failed, 2);
  EXPECT_EQ(f.latencies.at("itl").percentiles[0].second, 0);
}

TEST(Dataset, RandomPromptsHaveTheTokensAskedFor) {
  const auto tokenizer = Tokenizer::load(std::string(DUET_MODELS) + "/kjv-8m");
  DatasetOptions o;
  o.num_prompts = 20;
  o.random_input_len = 50;
  o.random_output_len = 10;
  o.random_prefix_len = 7;
  o.random_range_ratio = 0.2;
  const std::vector<LoadRequest> requests = make_dataset(o, tokenizer.get(), 0);
  ASSERT_EQ(requests.size(), 20u);
  EncodeOptions with;
  with.add_special_tokens = true;
  for (const LoadRequest& r : requests) {
    EXPECT_EQ(static_cast<int64_t>(tokenizer->encode(r.prompt, with).size()), r.prompt_tokens);
    EXPECT_GE(r.prompt_tokens, 7 + 40 - 1);
    EXPECT_LE(r.prompt_tokens, 7 + 60 + 1);
    EXPECT_GE(r.output_tokens, 8);
    EXPECT_LE(r.output_tokens, 12);
    EXPECT_EQ(r.prompt.substr(0, 8), requests[0].prompt.substr(0, 8));
  }
  EXPECT_NE(requests[0].prompt, requests[1].prompt);
  EXPECT_EQ(make_dataset(o, tokenizer.get(), 0)[5].prompt, requests[5].prompt);
}

TEST(Dataset, WithoutTokenizerTokenIds) {
  DatasetOptions o;
  o.num_prompts = 2;
  o.random_input_len = 9;
  const std::vector<LoadRequest> requests = make_dataset(o, nullptr, 100);
  EXPECT_EQ(requests[1].prompt_ids.size(), 9u);
  EXPECT_THAT(requests[1].prompt_ids, ::testing::Each(::testing::Lt(100)));
  EXPECT_THROW(make_dataset(o, nullptr, 0), Error);
  o.name = "sharegpt";
  EXPECT_THROW(make_dataset(o, nullptr, 100), Error);
}

TEST(HttpClient, Urls) {
  const HttpUrl url = parse_url("http://127.0.0.1:8006/prefix/");
  EXPECT_EQ(url.host, "127.0.0.1");
  EXPECT_EQ(url.port, 8006);
  EXPECT_EQ(url.path, "/prefix");
  EXPECT_EQ(parse_url("https://a.example").port, 443);
  EXPECT_EQ(parse_url("http://[::1]:1").host, "::1");
  for (const char* wrong : {"", "127.0.0.1:8000", "ftp://a", "http://", "http://a:b"})
    EXPECT_THROW(parse_url(wrong), Error) << wrong;
}

}  // namespace
}  // namespace duet
