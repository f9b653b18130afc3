#include "cli/trace_summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "cli/trace_slices.h"

namespace duet {
namespace {

using nlohmann::json;

constexpr const char* kLaneNames[] = {"compute", "comm"};

/// Σ over collectives of the shortest time over ranks. The n-th occurrence of one (step, kind,
/// layer, micro-batch) is the same collective on every rank: they run in one order.
double communication_us(const std::vector<TraceSlice>& slices) {
  using Key = std::tuple<int64_t, std::string, int64_t, int64_t, int64_t>;
  std::map<std::pair<int, Key>, int64_t> seen;
  std::map<Key, double> shortest;
  for (const TraceSlice& slice : slices) {
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
double exposed_us(const std::vector<const TraceSlice*>& of_rank) {
  const bool told =
      std::any_of(of_rank.begin(), of_rank.end(), [](const TraceSlice* s) { return s->wait_us >= 0; });
  struct Ends {
    double lane[2] = {0, 0};
    bool computed = false;
  };
  std::map<int64_t, Ends> steps;
  double total = 0;
  for (const TraceSlice* slice : of_rank) {
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

void add_kinds(const std::vector<TraceSlice>& slices, TraceSummary& summary) {
  std::map<std::pair<int, std::string>, TraceSummary::Kind> kinds;
  double lane_ms[2] = {0, 0};
  for (const TraceSlice& slice : slices) {
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

void add_ranks(const std::vector<TraceSlice>& slices, TraceSummary& summary) {
  std::map<int, std::vector<const TraceSlice*>> of_rank;
  std::map<int, TraceSummary::Rank> ranks;
  for (const TraceSlice& slice : slices) {
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

/// Of loads by rank: the largest over the mean; 0 when there is none.
double skew(const std::map<int, double>& loads) {
  double sum = 0, most = 0;
  for (const auto& [rank, load] : loads) {
    sum += load;
    most = std::max(most, load);
  }
  return sum > 0 ? most * static_cast<double>(loads.size()) / sum : 0;
}

void add_expert_skew(const std::vector<TraceSlice>& slices, TraceSummary& summary) {
  std::map<int, double> all;                      // by rank
  std::map<int64_t, std::map<int, double>> each;  // by layer
  for (const TraceSlice& slice : slices) {
    if (slice.expert_rows < 0) continue;
    all[slice.rank] += slice.expert_rows;
    each[slice.layer][slice.rank] += slice.expert_rows;
  }
  summary.expert_skew = skew(all);
  for (const auto& [layer, loads] : each) {
    if (skew(loads) <= summary.worst_expert_skew) continue;
    summary.worst_expert_skew = skew(loads);
    summary.worst_expert_layer = layer;
  }
}

void add_steps(const std::vector<TraceSlice>& slices, TraceSummary& summary) {
  std::set<int64_t> numbers;
  std::map<int64_t, std::set<int64_t>> micro_batches;
  double first = std::numeric_limits<double>::infinity();
  double last = 0;
  for (const TraceSlice& slice : slices) {
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
  const json trace = parse_trace(text, file);
  TraceSummary summary;
  const json& header = trace["duet"];
  if (header.contains("version") && header["version"].is_string()) summary.version = header["version"];
  std::vector<TraceSlice> slices = read_slices(trace["traceEvents"], file);
  std::stable_sort(slices.begin(), slices.end(),
                   [](const TraceSlice& a, const TraceSlice& b) { return a.start_us < b.start_us; });
  add_kinds(slices, summary);
  add_ranks(slices, summary);
  add_steps(slices, summary);
  add_expert_skew(slices, summary);
  summary.comm_ms = communication_us(slices) / 1000;
  summary.ranks = static_cast<int>(summary.per_rank.size());
  return summary;
}

TraceSummary summarize_trace_file(const std::string& path) {
  return summarize_trace(read_trace_file(path), path);
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
  if (s.expert_skew > 0) {
    text += fmt::format("expert load    {:.2f} of the mean on the busiest rank; layer {}: {:.2f}\n",
                        s.expert_skew, s.worst_expert_layer, s.worst_expert_skew);
  }
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
          {"expert_skew", s.expert_skew},
          {"worst_expert_skew", s.worst_expert_skew},
          {"worst_expert_layer", s.worst_expert_layer},
          {"kinds", std::move(kinds)},
          {"per_rank", std::move(ranks)}};
}

}  // namespace duet
