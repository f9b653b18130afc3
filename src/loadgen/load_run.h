// A benchmark's run against a server: when requests leave (a rate with gaps of a gamma distribution, a
// limit on how many are under way), and what the results come to. Figures and their names are vLLM's.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "loadgen/openai_client.h"

namespace duet {

struct LoadPlan {
  double request_rate = std::numeric_limits<double>::infinity();  // per second; infinite: all at once
  double burstiness = 1;        // shape of the gaps' gamma distribution; 1: Poisson arrivals
  int64_t max_concurrency = 0;  // 0: no limit
  uint64_t seed = 0;
};

/// Seconds after the start at which each request leaves; the last one leaves at count / rate.
std::vector<double> departure_times(const LoadPlan& plan, size_t count);

struct LoadRun {
  std::vector<LoadResult> results;  // in the order of the requests
  double seconds = 0;               // from the first departure to the last answer
};
/// `progress(done)` is called from the threads that send.
LoadRun run_load(const OpenAiTarget& target, const std::vector<LoadRequest>& requests, const LoadPlan& plan,
                 const std::function<void(int64_t)>& progress);

/// Mean, median, deviation and percentiles of one latency, in milliseconds; all 0 without samples.
struct LatencyFigures {
  double mean = 0, median = 0, deviation = 0;
  std::vector<std::pair<double, double>> percentiles;  // (90, value)
};
LatencyFigures latency_figures(std::vector<double> seconds, const std::vector<double>& percentiles);

struct LoadFigures {
  int64_t completed = 0, failed = 0;
  int64_t input_tokens = 0, output_tokens = 0;
  double duration = 0;                                                         // seconds
  double request_throughput = 0, output_throughput = 0, total_throughput = 0;  // per second
  double request_goodput = 0;
  double peak_output_throughput = 0;                // tokens in the fullest second
  int64_t peak_concurrency = 0;                     // requests under way in the fullest second
  std::map<std::string, LatencyFigures> latencies;  // ttft, tpot, itl, e2el
};
/// `goodput`: the most milliseconds of ttft, tpot or e2el that a good request may take.
LoadFigures load_figures(const LoadRun& run, const std::vector<double>& percentiles,
                         const std::map<std::string, double>& goodput);

}  // namespace duet
