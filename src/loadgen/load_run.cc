#include "loadgen/load_run.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <random>
#include <thread>
#include <utility>

#include "base/clock.h"

namespace duet {

std::vector<double> departure_times(const LoadPlan& plan, size_t count) {
  std::vector<double> times(count, 0.0);
  if (std::isinf(plan.request_rate)) return times;
  std::mt19937_64 random(plan.seed);
  std::gamma_distribution<double> gap(plan.burstiness, 1.0 / (plan.request_rate * plan.burstiness));
  double now = 0;
  for (double& time : times) time = (now += gap(random));
  // Scaled to the rate exactly, so that two runs of few requests offer the same load.
  const double whole = static_cast<double>(count) / plan.request_rate;
  for (double& time : times) time *= now > 0 ? whole / now : 0.0;
  return times;
}

LoadRun run_load(const OpenAiTarget& target, const std::vector<LoadRequest>& requests, const LoadPlan& plan,
                 const std::function<void(int64_t)>& progress) {
  LoadRun run;
  run.results.resize(requests.size());
  const std::vector<double> departures = departure_times(plan, requests.size());
  const size_t senders = plan.max_concurrency > 0
                             ? std::min(requests.size(), static_cast<size_t>(plan.max_concurrency))
                             : requests.size();
  std::atomic<size_t> next{0};
  std::atomic<int64_t> done{0};
  const auto start = std::chrono::steady_clock::now();
  const auto send = [&] {
    for (size_t i; (i = next.fetch_add(1)) < requests.size();) {
      std::this_thread::sleep_until(start + std::chrono::duration_cast<std::chrono::nanoseconds>(
                                                std::chrono::duration<double>(departures[i])));
      run.results[i] = send_request(target, requests[i]);
      if (progress) progress(++done);
    }
  };
  const int64_t begin = now_ns();
  {
    std::vector<std::jthread> threads;
    for (size_t t = 0; t < senders; ++t) threads.emplace_back(send);
  }
  run.seconds = static_cast<double>(now_ns() - begin) * 1e-9;
  return run;
}

namespace {

// Linear between neighbours, as numpy's default.
double percentile(const std::vector<double>& sorted, double p) {
  const double at = p / 100 * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (at - static_cast<double>(low));
}

double time_per_token(const LoadResult& r) {
  return r.output_tokens > 1 ? (r.latency - r.ttft) / static_cast<double>(r.output_tokens - 1) : 0.0;
}

bool is_good(const LoadResult& r, const std::map<std::string, double>& goodput) {
  for (const auto& [name, most_ms] : goodput) {
    const double value = name == "ttft" ? r.ttft : name == "tpot" ? time_per_token(r) : r.latency;
    if (value * 1e3 > most_ms) return false;
  }
  return true;
}

// The fullest of the run's seconds, by chunks and by requests.
void note_peaks(const LoadRun& run, LoadFigures& f) {
  int64_t first = 0;
  for (const LoadResult& r : run.results)
    if (r.success && (first == 0 || r.sent_ns < first)) first = r.sent_ns;
  std::vector<double> tokens(static_cast<size_t>(run.seconds) + 2);
  std::vector<int64_t> under_way(tokens.size());
  for (const LoadResult& r : run.results) {
    if (!r.success) continue;
    const double sent = static_cast<double>(r.sent_ns - first) * 1e-9;
    const auto second = [&](double t) { return std::min(static_cast<size_t>(t), tokens.size() - 1); };
    double at = sent + r.ttft;
    // A chunk may carry several tokens: each counts for its share of the answer.
    const double share = static_cast<double>(r.output_tokens) / static_cast<double>(r.itl.size() + 1);
    tokens[second(at)] += share;
    for (const double gap : r.itl) tokens[second(at += gap)] += share;
    for (size_t s = second(sent); s <= second(sent + r.latency); ++s) ++under_way[s];
  }
  f.peak_output_throughput = *std::max_element(tokens.begin(), tokens.end());
  f.peak_concurrency = *std::max_element(under_way.begin(), under_way.end());
}

}  // namespace

LatencyFigures latency_figures(std::vector<double> seconds, const std::vector<double>& percentiles) {
  LatencyFigures f;
  const bool any = !seconds.empty();
  std::sort(seconds.begin(), seconds.end());
  const auto n = static_cast<double>(seconds.size());
  for (const double s : seconds) f.mean += s * 1e3 / n;
  for (const double s : seconds) f.deviation += (s * 1e3 - f.mean) * (s * 1e3 - f.mean) / n;
  f.deviation = std::sqrt(f.deviation);
  f.median = any ? percentile(seconds, 50) * 1e3 : 0;
  for (const double p : percentiles) f.percentiles.emplace_back(p, any ? percentile(seconds, p) * 1e3 : 0);
  return f;
}

LoadFigures load_figures(const LoadRun& run, const std::vector<double>& percentiles,
                         const std::map<std::string, double>& goodput) {
  LoadFigures f;
  f.duration = run.seconds;
  std::vector<double> ttft, tpot, itl, e2el;
  int64_t good = 0;
  for (const LoadResult& r : run.results) {
    if (!r.success) {
      ++f.failed;
      continue;
    }
    ++f.completed;
    f.input_tokens += r.prompt_tokens;
    f.output_tokens += r.output_tokens;
    ttft.push_back(r.ttft);
    if (r.output_tokens > 1) tpot.push_back(time_per_token(r));
    itl.insert(itl.end(), r.itl.begin(), r.itl.end());
    e2el.push_back(r.latency);
    good += is_good(r, goodput) ? 1 : 0;
  }
  f.request_throughput = static_cast<double>(f.completed) / run.seconds;
  f.request_goodput = static_cast<double>(good) / run.seconds;
  f.output_throughput = static_cast<double>(f.output_tokens) / run.seconds;
  f.total_throughput = static_cast<double>(f.input_tokens + f.output_tokens) / run.seconds;
  note_peaks(run, f);
  f.latencies["ttft"] = latency_figures(std::move(ttft), percentiles);
  f.latencies["tpot"] = latency_figures(std::move(tpot), percentiles);
  f.latencies["itl"] = latency_figures(std::move(itl), percentiles);
  f.latencies["e2el"] = latency_figures(std::move(e2el), percentiles);
  return f;
}

}  // namespace duet
