#include "cli/report.h"

#include <fmt/format.h>

#include <algorithm>

#include <nlohmann/json.hpp>

#include "duet/llm.h"

namespace duet {
namespace {

double rate(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
}

}  // namespace

std::string human_bytes(double bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.1f} {}", bytes, kUnits[unit]);
}

std::string human_count(double count) {
  constexpr const char* kUnits[] = {"", " K", " M", " B", " T"};
  size_t unit = 0;
  while (count >= 1000 && unit + 1 < std::size(kUnits)) {
    count /= 1000;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f}", count) : fmt::format("{:.2f}{}", count, kUnits[unit]);
}

namespace {

// A line for each way in which steps were run and the reason, sums as means.
std::string decisions_text(const LlmStats& s) {
  std::string text;
  for (const LlmStats::Decision& d : s.decisions) {
    const double steps = static_cast<double>(std::max<int64_t>(d.steps, 1));
    const std::string parts =
        d.micro_batches == 1 ? "whole" : fmt::format("in {} micro-batches", d.micro_batches);
    text +=
        fmt::format("  {:<20} {} steps, {}, {:.2f} ms each", parts, d.steps, d.reason, d.measured_ms / steps);
    if (d.predicted_ms > 0) text += fmt::format(", predicted {:.2f} ms", d.predicted_ms / steps);
    if (d.micro_batches > 1 && d.predicted_whole_ms > 0)
      text += fmt::format(", whole {:.2f} ms", d.predicted_whole_ms / steps);
    text += '\n';
  }
  return text;
}

}  // namespace

std::string report_text(const LlmStats& s, int ranks) {
  std::string text = fmt::format(
      "prefill        {} tokens, {:.1f} tokens/s\n"
      "decode         {} tokens, {:.1f} tokens/s\n"
      "steps          {} in {:.1f} ms, {} overlapped{}\n"
      "computation    {:.1f} ms\n",
      s.prefill_tokens, rate(s.prefill_tokens, s.prefill_seconds), s.decode_tokens,
      rate(s.decode_tokens, s.decode_seconds), s.steps, s.step_ms, s.steps_overlapped,
      s.preemptions > 0 ? fmt::format(", {} preemptions", s.preemptions) : "", s.compute_ms);
  text += decisions_text(s);
  // One rank has no wire: what its comm lane does is hand over, and a share of that means nothing.
  if (ranks == 1) return text + "communication  none, one rank\n";
  // Waits count whatever they are for; on tiny steps or a busy machine that is mostly not the network.
  const char* note = s.exposed_ms > s.comm_ms
                         ? " (waits beyond the network's time: ranks and lanes waiting for each other)"
                         : "";
  return text + fmt::format("communication  {:.1f} ms, exposed {:.1f} ms, hidden share {:.2f}{}\n", s.comm_ms,
                            s.exposed_ms, s.hidden_share, note);
}

nlohmann::json report_json(const LlmStats& s, const LlmOptions& o) {
  nlohmann::json decisions = nlohmann::json::array();
  for (const LlmStats::Decision& d : s.decisions) {
    decisions.push_back({{"reason", d.reason},
                         {"micro_batches", d.micro_batches},
                         {"steps", d.steps},
                         {"predicted_ms", d.predicted_ms},
                         {"predicted_whole_ms", d.predicted_whole_ms},
                         {"measured_ms", d.measured_ms}});
  }
  nlohmann::json kinds = nlohmann::json::array();
  for (const LlmStats::Kind& kind : s.kinds) {
    kinds.push_back({{"kind", kind.kind},
                     {"lane", kind.comm ? "comm" : "compute"},
                     {"count", kind.count},
                     {"ms", kind.ms}});
  }
  return {{"version", DUET_VERSION},
          {"model", o.model},
          {"dtype", o.dtype},
          {"kv_cache_dtype", o.kv_cache_dtype},
          {"quantization", o.quantization},
          {"tensor_parallel_size", o.tensor_parallel_size},
          {"distributed_executor_backend", o.distributed_executor_backend},
          {"expert_path", o.expert_path},
          {"comm_dtype", o.comm_dtype},
          {"dbo", o.dbo},
          {"micro_batches", o.micro_batches},
          {"prefill_tokens", s.prefill_tokens},
          {"prefill_seconds", s.prefill_seconds},
          {"prefill_tokens_per_second", rate(s.prefill_tokens, s.prefill_seconds)},
          {"decode_tokens", s.decode_tokens},
          {"decode_seconds", s.decode_seconds},
          {"decode_tokens_per_second", rate(s.decode_tokens, s.decode_seconds)},
          {"steps", s.steps},
          {"steps_overlapped", s.steps_overlapped},
          {"preemptions", s.preemptions},
          {"step_ms", s.step_ms},
          {"compute_ms", s.compute_ms},
          {"comm_ms", s.comm_ms},
          {"exposed_ms", s.exposed_ms},
          {"hidden_share", s.hidden_share},
          {"decisions", std::move(decisions)},
          {"kinds", std::move(kinds)}};
}

}  // namespace duet
