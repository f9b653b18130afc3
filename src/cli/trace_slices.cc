#include "cli/trace_slices.h"

#include <fmt/format.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json_text.h"

namespace duet {
namespace {

using nlohmann::json;

[[noreturn]] void bad(const std::string& file, const std::string& what) {
  throw Error(ErrorKind::kCorrupt, fmt::format("{}: {}", file, what));
}

double number_of(const json& event, const char* key, const std::string& file, size_t index) {
  const auto found = event.find(key);
  if (found == event.end() || !found->is_number()) {
    bad(file, fmt::format("traceEvents[{}] has no number \"{}\"", index, key));
  }
  return found->get<double>();
}

int64_t whole(double value, double low, double high, const char* key, const std::string& file, size_t index) {
  if (!(value >= low && value <= high)) {
    bad(file, fmt::format("traceEvents[{}]: \"{}\" is {}; expected {} to {}", index, key, value, low, high));
  }
  return static_cast<int64_t>(value);
}

TraceSlice read_slice(const json& event, const std::string& file, size_t index) {
  TraceSlice slice;
  const auto name = event.find("name");
  const auto args = event.find("args");
  if (name == event.end() || !name->is_string()) bad(file, fmt::format("traceEvents[{}] has no name", index));
  if (args == event.end() || !args->is_object()) bad(file, fmt::format("traceEvents[{}] has no args", index));
  slice.kind = name->get<std::string>();
  slice.rank = static_cast<int>(whole(number_of(event, "pid", file, index), 0, 1e6, "pid", file, index));
  slice.lane = static_cast<int>(whole(number_of(event, "tid", file, index), 0, 1, "tid", file, index));
  slice.start_us = number_of(event, "ts", file, index);
  slice.duration_us = number_of(event, "dur", file, index);
  if (!(slice.duration_us >= 0)) bad(file, fmt::format("traceEvents[{}]: \"dur\" is negative", index));
  constexpr double kMost = 1e15;
  slice.step = whole(number_of(*args, "step", file, index), -kMost, kMost, "step", file, index);
  slice.layer = whole(number_of(*args, "layer", file, index), -kMost, kMost, "layer", file, index);
  slice.micro_batch =
      whole(number_of(*args, "micro_batch", file, index), -kMost, kMost, "micro_batch", file, index);
  const auto schedule = args->find("schedule");
  if (schedule != args->end() && schedule->is_string()) {
    slice.sequential = schedule->get<std::string>().starts_with("sequential");
  }
  if (args->contains("wait_us")) slice.wait_us = number_of(*args, "wait_us", file, index);
  if (args->contains("expert_rows")) slice.expert_rows = number_of(*args, "expert_rows", file, index);
  return slice;
}

}  // namespace

std::vector<TraceSlice> read_slices(const json& events, const std::string& file) {
  std::vector<TraceSlice> slices;
  for (size_t i = 0; i < events.size(); ++i) {
    const json& event = events[i];
    if (!event.is_object()) bad(file, fmt::format("traceEvents[{}] is not an object", i));
    const auto phase = event.find("ph");
    if (phase == event.end() || !phase->is_string())
      bad(file, fmt::format("traceEvents[{}] has no \"ph\"", i));
    if (*phase == "X") slices.push_back(read_slice(event, file, i));
  }
  return slices;
}

json parse_trace(std::string_view text, const std::string& file) {
  json trace = try_json(text);
  if (trace.is_discarded()) bad(file, "not JSON; expected a trace that duet generate --trace wrote");
  if (!trace.is_object() || !trace.contains("traceEvents") || !trace["traceEvents"].is_array()) {
    bad(file, "no Chrome trace: \"traceEvents\" is missing");
  }
  if (!trace.contains("duet") || !trace["duet"].is_object()) {
    bad(file, "a Chrome trace, but not one that duet generate --trace wrote (\"duet\" is missing)");
  }
  return trace;
}

std::string read_trace_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(ErrorKind::kNotFound, fmt::format("cannot read the trace {}", path));
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace duet
