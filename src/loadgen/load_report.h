// The benchmark's result as a table for people and as JSON for tools: the layout and the keys are those
// of vLLM's `bench serve`, so that what reads one reads the other.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "loadgen/load_run.h"

namespace duet {

struct LoadReport {
  LoadPlan plan;
  LoadFigures figures;
  std::vector<std::string> metrics;  // of ttft, tpot, itl, e2el: what is shown
  bool with_goodput = false;
  std::string backend, label, model, tokenizer, date;
  int64_t num_prompts = 0;
};

std::string load_table(const LoadReport& report);
/// `detailed`: with each request's lengths, times, text and error.
nlohmann::ordered_json load_json(const LoadReport& report, const LoadRun& run, bool detailed);
/// "99", "99.9": how a percentile is named.
std::string percentile_name(double percentile);

}  // namespace duet
