#include "cli/trace_summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "base/error.h"

namespace duet {
namespace {

using nlohmann::json;

constexpr const char* kLaneNames[] = {"compute", "comm"};

/// One "X" event.
struct Slice {
  int rank = 0;
  int lane = 0;
  std::string kind;
  double start_us = 0;
  double duration_us = 0;
  double wait_us = -1;  // < 0: not given
  int64_t step = 0;
  int64_t layer = 0;
  int64_t micro_batch = 0;
  bool sequential = false;  // of a program that overlaps nothing
};

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

Slice read_slice(const json& event, const std::string& file, size_t index) {
  Slice slice;
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
  return slice;
}

std::vector<Slice> read_slices(const json& events, const std::string& file) {
  std::vector<Slice> slices;
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

/// Σ over collectives of the shortest time over ranks. The n-th occurrence of one (step, kind,
/// layer, micro-batch) is the same collective on every rank: they run in one order.
double communication_us(const std::vector<Slice>& slices) {
  using Key = std::tuple<int64_t, std::string, int64_t, int64_t, int64_t>;
  std::map<std::pair<int, Key>, int64_t> seen;
  std::map<Key, double> shortest;
  for (const Slice& slice : slices) {
    if (slice.lane != 1) continue;
    Key key{slice.step, slice.kind, slice.layer, slice.micro_batch, 0};
    std::get<4>(key) = seen[{slice.rank, key}]++;
    const auto [place, fresh] = shortest.try_emplace(key, slice.duration_us);
    if (!fresh) place->second = std::min(place->second, slice.duration_us);
  }
  double total = 0;
  for (const auto& [key, duration] : shortest) total += duration;
  return total;
}

/// Time in which a rank's compute lane waited: before a slice, as the slices say (else the gaps
/// between them inside a step), and at a step's end for the comm lane to finish.
double exposed_us(const std::vector<const Slice*>& of_rank) {
  const bool told =
      std::any_of(of_rank.begin(), of_rank.end(), [](const Slice* s) { return s->wait_us >= 0; });
  struct Ends {
    double lane[2] = {0, 0};
    bool computed = false;
  };
  std::map<int64_t, Ends> steps;
  double total = 0;
  for (const Slice* slice : of_rank) {
    Ends& ends = steps[slice->step];
    if (slice->lane == 0) {
      if (told) {
        total += std::max(slice->wait_us, 0.0);
      } else if (ends.computed) {
        total += std::max(slice->start_us - ends.lane[0], 0.0);
      }
      ends.computed = true;
    }
    ends.lane[slice->lane] = std::max(ends.lane[slice->lane], slice->start_us + slice->duration_us);
  }
  for (const auto& [step, ends] : steps) {
    if (ends.computed) total += std::max(ends.lane[1] - ends.lane[0], 0.0);
  }
  return total;
}

void add_kinds(const std::vector<Slice>& slices, TraceSummary& summary) {
  std::map<std::pair<int, std::string>, TraceSummary::Kind> kinds;
  double lane_ms[2] = {0, 0};
  for (const Slice& slice : slices) {
    TraceSummary::Kind& kind = kinds[{slice.lane, slice.kind}];
    kind.lane = slice.lane;
    kind.kind = slice.kind;
    ++kind.count;
    kind.total_ms += slice.duration_us / 1000;
    lane_ms[slice.lane] += slice.duration_us / 1000;
  }
  for (auto& [key, kind] : kinds) {
    kind.mean_us = kind.total_ms * 1000 / static_cast<double>(kind.count);
    kind.share = lane_ms[kind.lane] > 0 ? kind.total_ms / lane_ms[kind.lane] : 0;
    summary.kinds.push_back(kind);
  }
  std::stable_sort(summary.kinds.begin(), summary.kinds.end(), [](const auto& a, const auto& b) {
    return std::make_tuple(a.lane, -a.total_ms) < std::make_tuple(b.lane, -b.total_ms);
  });
}

void add_ranks(const std::vector<Slice>& slices, TraceSummary& summary) {
  std::map<int, std::vector<const Slice*>> of_rank;
  std::map<int, TraceSummary::Rank> ranks;
  for (const Slice& slice : slices) {
    TraceSummary::Rank& rank = ranks[slice.rank];
    rank.rank = slice.rank;
    (slice.lane == 0 ? rank.compute_ms : rank.comm_ms) += slice.duration_us / 1000;
    of_rank[slice.rank].push_back(&slice);
  }
  for (auto& [number, rank] : ranks) {
    rank.exposed_ms = exposed_us(of_rank[number]) / 1000;
    summary.compute_ms = std::max(summary.compute_ms, rank.compute_ms);
    summary.exposed_ms = std::max(summary.exposed_ms, rank.exposed_ms);
    summary.per_rank.push_back(rank);
  }
}

void add_steps(const std::vector<Slice>& slices, TraceSummary& summary) {
  std::set<int64_t> numbers;
  std::map<int64_t, std::set<int64_t>> micro_batches;
  double first = std::numeric_limits<double>::infinity();
  double last = 0;
  for (const Slice& slice : slices) {
    if (!slice.sequential) micro_batches[slice.step].insert(slice.micro_batch);
    numbers.insert(slice.step);
    first = std::min(first, slice.start_us);
    last = std::max(last, slice.start_us + slice.duration_us);
  }
  summary.steps = static_cast<int64_t>(numbers.size());
  summary.steps_overlapped = std::count_if(micro_batches.begin(), micro_batches.end(),
                                           [](const auto& step) { return step.second.size() > 1; });
  if (!slices.empty()) summary.span_ms = (last - first) / 1000;
}

}  // namespace

TraceSummary summarize_trace(std::string_view text, const std::string& file) {
  const json trace = json::parse(text.begin(), text.end(), nullptr, false);
  if (trace.is_discarded()) bad(file, "not JSON; expected a trace that duet generate --trace wrote");
  if (!trace.is_object() || !trace.contains("traceEvents") || !trace["traceEvents"].is_array()) {
    bad(file, "no Chrome trace: \"traceEvents\" is missing");
  }
  if (!trace.contains("duet") || !trace["duet"].is_object()) {
    bad(file, "a Chrome trace, but not one that duet generate --trace wrote (\"duet\" is missing)");
  }
  TraceSummary summary;
  const json& header = trace["duet"];
  if (header.contains("version") && header["version"].is_string()) summary.version = header["version"];
  std::vector<Slice> slices = read_slices(trace["traceEvents"], file);
  std::stable_sort(slices.begin(), slices.end(),
                   [](const Slice& a, const Slice& b) { return a.start_us < b.start_us; });
  add_kinds(slices, summary);
  add_ranks(slices, summary);
  add_steps(slices, summary);
  summary.comm_ms = communication_us(slices) / 1000;
  summary.ranks = static_cast<int>(summary.per_rank.size());
  return summary;
}

TraceSummary summarize_trace_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(ErrorKind::kNotFound, fmt::format("cannot read the trace {}", path));
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  return summarize_trace(text, path);
}

std::string to_text(const TraceSummary& s) {
  std::string text = fmt::format("{} ranks, {} steps ({} overlapped), {:.1f} ms from first to last stage\n\n",
                                 s.ranks, s.steps, s.steps_overlapped, s.span_ms);
  text += fmt::format("{:<8} {:<16} {:>8} {:>12} {:>12} {:>8}\n", "lane", "stage", "count", "total ms",
                      "mean us", "share");
  for (const TraceSummary::Kind& kind : s.kinds) {
    text += fmt::format("{:<8} {:<16} {:>8} {:>12.3f} {:>12.1f} {:>6.1f} %\n", kLaneNames[kind.lane],
                        kind.kind, kind.count, kind.total_ms, kind.mean_us, 100 * kind.share);
  }
  text += fmt::format("\n{:<8} {:>12} {:>16} {:>12}\n", "rank", "compute ms", "communicate ms", "exposed ms");
  for (const TraceSummary::Rank& rank : s.per_rank) {
    text += fmt::format("{:<8} {:>12.3f} {:>16.3f} {:>12.3f}\n", rank.rank, rank.compute_ms, rank.comm_ms,
                        rank.exposed_ms);
  }
  text += fmt::format(
      "\ncomputation    {:.3f} ms (the busiest rank)\n"
      "communication  {:.3f} ms (each collective counted by its fastest rank)\n"
      "exposed        {:.3f} ms (the longest over ranks)\n"
      "hidden share   {:.3f}\n",
      s.compute_ms, s.comm_ms, s.exposed_ms, s.hidden_share());
  return text;
}

json to_json(const TraceSummary& s) {
  json kinds = json::array();
  for (const TraceSummary::Kind& kind : s.kinds) {
    kinds.push_back({{"lane", kLaneNames[kind.lane]},
                     {"kind", kind.kind},
                     {"count", kind.count},
                     {"total_ms", kind.total_ms},
                     {"mean_us", kind.mean_us},
                     {"share", kind.share}});
  }
  json ranks = json::array();
  for (const TraceSummary::Rank& rank : s.per_rank) {
    ranks.push_back({{"rank", rank.rank},
                     {"compute_ms", rank.compute_ms},
                     {"comm_ms", rank.comm_ms},
                     {"exposed_ms", rank.exposed_ms}});
  }
  return {{"version", s.version},
          {"ranks", s.ranks},
          {"steps", s.steps},
          {"steps_overlapped", s.steps_overlapped},
          {"span_ms", s.span_ms},
          {"compute_ms", s.compute_ms},
          {"comm_ms", s.comm_ms},
          {"exposed_ms", s.exposed_ms},
          {"hidden_share", s.hidden_share()},
          {"kinds", std::move(kinds)},
          {"per_rank", std::move(ranks)}};
}

}  // namespace duet
