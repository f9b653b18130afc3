#include "serve/step_log.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "overlap/program.h"

namespace duet {

namespace {

using Json = nlohmann::ordered_json;

double ms(int64_t ns) {
  return static_cast<double>(ns) * 1e-6;
}

}  // namespace

void StepLog::note(const Step& step, const StepResult& result) {
  Entry entry;
  entry.prompt_tokens = step.prompt_rows;
  entry.tokens = step.batch.rows();
  entry.step_ns = result.step_ns;
  entry.exposed_ns = result.exposed_ns;
  entry.comm_ns = result.comm_ns;
  entry.predicted_ns = result.predicted_ns;
  entry.micro_batches = result.micro_batches;
  entry.overlapped = result.overlapped;
  entry.decision = result.decision;
  entry.program = result.program;
  entry.times.assign(result.times.begin(), result.times.end());
  std::lock_guard lock(mutex_);
  entry.number = count_++;
  ++sums_.decisions[entry.decision];
  for (size_t s = 0; s < entry.times.size(); ++s) {
    const StageTime& time = entry.times[s];
    sums_.busy_seconds[static_cast<size_t>(entry.program->stages[s].lane)] +=
        static_cast<double>(time.end_ns - time.start_ns) * 1e-9;
  }
  steps_.push_back(std::move(entry));
  if (steps_.size() > kKept) steps_.pop_front();
}

StepSums StepLog::sums() const {
  std::lock_guard lock(mutex_);
  return sums_;
}

std::string StepLog::json() const {
  std::deque<Entry> steps;
  {
    std::lock_guard lock(mutex_);
    steps = steps_;
  }
  Json list = Json::array();
  for (const Entry& entry : steps) {
    Json json;
    json["step"] = entry.number;
    json["tokens"] = entry.tokens;
    json["prompt_tokens"] = entry.prompt_tokens;
    json["step_ms"] = ms(entry.step_ns);
    json["predicted_ms"] = entry.predicted_ns * 1e-6;
    json["comm_ms"] = ms(entry.comm_ns);
    json["exposed_ms"] = ms(entry.exposed_ns);
    json["micro_batches"] = entry.micro_batches;
    json["overlapped"] = entry.overlapped;
    json["decision"] = entry.decision;
    int64_t first = INT64_MAX;
    for (const StageTime& time : entry.times) first = std::min(first, time.start_ns);
    json["lanes"] = {{"compute", Json::array()}, {"comm", Json::array()}};
    for (const Lane lane : {Lane::kCompute, Lane::kComm}) {
      Json& stages = json["lanes"][to_string(lane)];
      for (const int s : entry.program ? entry.program->lane_order(lane) : std::vector<int>{}) {
        const StageTime& time = entry.times[static_cast<size_t>(s)];
        stages.push_back({stage_label(entry.program->stages[static_cast<size_t>(s)]),
                          (time.start_ns - first) / 1000, (time.end_ns - first) / 1000});
      }
    }
    list.push_back(std::move(json));
  }
  return json_text(Json{{"steps", std::move(list)}});
}

}  // namespace duet
