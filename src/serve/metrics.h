// What /metrics says: vLLM's names and meanings, and duet's own for the overlap. Requests are noted by
// Reply, the engine's state comes with each scrape. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "engine/engine_thread.h"
#include "serve/step_log.h"

namespace duet {

/// Counts by upper bound, as Prometheus wants them.
class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds) : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}
  void note(double value);
  void write(std::string& out, const std::string& name, const std::string& labels,
             const std::string& help) const;

 private:
  std::vector<double> bounds_;
  std::vector<int64_t> counts_;
  double sum_ = 0;
};

class ServerMetrics {
 public:
  explicit ServerMetrics(std::string model);

  void first_token(double seconds, double queued_seconds);
  void next_token(double seconds);
  void request_done(const std::string& finish_reason, double seconds, int64_t prompt_tokens,
                    int64_t generated_tokens);
  void generated(int64_t tokens);
  void prompt(int64_t tokens);
  /// The page in Prometheus' text format.
  std::string text(const EngineLoad& load, const StepSums& steps, int64_t connections,
                   int64_t live_requests) const;

 private:
  const std::string model_;
  mutable std::mutex mutex_;
  Histogram first_token_, next_token_, end_to_end_, queued_, prompt_sizes_, generated_sizes_;
  std::map<std::string, int64_t> finished_;
  int64_t prompt_tokens_ = 0, generated_tokens_ = 0;
};

}  // namespace duet
