// duet bench overlap: what dual-batch overlap hides on these ranks, and why not more.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <ostream>

#include "base/json_text.h"
#include "cli/bench_overlap.h"
#include "cli/bench_room.h"
#include "cli/cli.h"
#include "cli/flags.h"
#include "cli/options.h"
#include "cli/output_file.h"
#include "cli/progress.h"
#include "cli/usage_error.h"
#include "cli/verbs.h"
#include "engine/options.h"
#include "engine/planner.h"

namespace duet {
namespace {

using nlohmann::ordered_json;

std::vector<double> numbers(const Flags& flags, const char* name, double low, double high) {
  std::vector<double> values;
  const std::string text = flags.text(name);
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    const std::string part = text.substr(at, end - at);
    char* rest = nullptr;
    const double value = std::strtod(part.c_str(), &rest);
    if (part.empty() || *rest != '\0' || !(value >= low && value <= high))
      throw UsageError(fmt::format("{} {}: expected numbers from {} to {}, separated by commas",
                                   flags.shown(name), text, low, high));
    values.push_back(value);
    at = end + 1;
  }
  return values;
}

std::vector<ProbeShape> shapes_of(const Flags& flags, const char* tokens_flag) {
  ProbeShape shape;
  const std::string phase = flags.text("phase");
  shape.phase = phase == "decode"  ? ProbePhase::kDecode
                : phase == "mixed" ? ProbePhase::kMixed
                                   : ProbePhase::kPrefill;
  shape.sequences = flags.integer("sequences");
  shape.decodes = flags.integer("decodes");
  shape.context = flags.given("context")                ? flags.integer("context")
                  : shape.phase == ProbePhase::kPrefill ? 0
                                                        : 256;
  std::vector<ProbeShape> shapes;
  if (flags.text(tokens_flag).empty()) return shapes;
  for (double tokens : numbers(flags, tokens_flag, 1, 1048576)) {
    shape.tokens = static_cast<int64_t>(tokens);
    shapes.push_back(shape);
  }
  return shapes;
}

// Calibration's own steps want that much KV cache even where the measured ones are small.
constexpr int64_t kCalibrationBlocks = 2048;

// Room for the largest step, whatever the flags' defaults.
RankOptions options_for(const LlmOptions& llm, const Flags& flags, const std::vector<ProbeShape>& shapes) {
  LlmOptions o = llm;
  const ModelConfig config = read_model_config(o);
  int64_t rows = 1, blocks = 1;
  for (const ProbeShape& s : shapes) {
    rows = std::max(rows, s.rows());
    blocks = std::max(blocks, s.blocks(o.block_size));
  }
  if (flags.given("comm-share")) o.link_bandwidth = "1gbit", o.link_latency = "50us";
  return options_with_room(o, config, rows, std::max(blocks, kCalibrationBlocks));
}

std::string row(const char* name, const LaneTimes& t, double off) {
  return fmt::format(
      "{:<16}{:>10.1f}  {:>8.1f} to {:>8.1f}{:>10.1f}{:>10.1f}{:>10.1f}{:>10.1f}{:>9.1f}{:>10.3f}\n", name,
      t.step, t.step_low, t.step_high, t.compute, t.comm, t.exposed, t.compute_cpu, t.comm_cpu, off / t.step);
}

std::string describe(const ProbeShape& s) {
  switch (s.phase) {
    case ProbePhase::kPrefill:
      return fmt::format("prefill, {} tokens of {} sequences, {} tokens before", s.tokens,
                         std::min(s.sequences, s.tokens), s.context);
    case ProbePhase::kDecode:
      return fmt::format("decode, {} sequences, {} tokens before", s.tokens, s.context);
    case ProbePhase::kMixed:
      return fmt::format("mixed, {} prompt tokens of {} sequences and {} decodes, {} tokens before", s.tokens,
                         std::min(s.sequences, s.tokens), s.decodes, s.context);
  }
  return "";
}

std::string text_of(const OverlapCase& c) {
  std::string out = describe(c.shape) + ", " + c.path + "\n";
  out +=
      "ms                 median     least to     most compute      comm   exposed cpu comp. cpu comm  "
      "speed-up\n";
  out += row("off", c.off, c.off.step);
  out += row(fmt::format("split alone, {}", c.micro_batches).c_str(), c.split, c.off.step);
  out += row(fmt::format("on, {}", c.micro_batches).c_str(), c.on, c.off.step);
  out += row(fmt::format("auto, {}", c.auto_micro_batches).c_str(), c.automatic, c.off.step);
  out += fmt::format("ranks in step   communication {:.1f} (CPU time of the comm lane {:.1f})\n", c.comm,
                     c.off.comm_cpu);
  out +=
      fmt::format("share {:.1f} %, S {:.3f} [{:.3f}, {:.3f}] of S* {:.3f}, eta {:.3f}, h {:.3f}, logits {}\n",
                  100 * c.comm_share, c.speedup.median, c.speedup.low, c.speedup.high, c.ideal, c.eta,
                  c.hidden, c.exact ? "bit-identical" : "DIFFER");
  out += fmt::format("auto / off {:.3f} [{:.3f}, {:.3f}], auto / better {:.3f} [{:.3f}, {:.3f}]; {}\n",
                     c.auto_over_off.median, c.auto_over_off.low, c.auto_over_off.high,
                     c.auto_over_best.median, c.auto_over_best.low, c.auto_over_best.high, c.reason);
  if (c.predicted_on > 0)
    out += fmt::format(
        "predicted: on {:.1f} ({:+.1f} %), off {:.1f} ({:+.1f} %); a comm lane per micro-batch {:.1f}\n",
        c.predicted_on, 100 * (c.predicted_on / c.on.step - 1), c.predicted_off,
        100 * (c.predicted_off / c.off.step - 1), c.predicted_lanes_apart);
  out += fmt::format(
      "beyond the longer lane {:.1f}: price of the split {:.1f}, CPU of communication {:.1f}, bubbles "
      "{:.1f}, ranks waiting for each other and wake-ups {:.1f} (imbalance of ranks {:.1f})\n\n",
      c.on.step - std::max(c.off.compute, c.comm), c.split_price, c.comm_cpu_price, c.bubbles, c.rest,
      c.on.imbalance);
  return out;
}

ordered_json times_json(const LaneTimes& t) {
  return {{"step_ms", t.step},           {"step_least_ms", t.step_low},
          {"step_most_ms", t.step_high}, {"compute_ms", t.compute},
          {"comm_ms", t.comm},           {"exposed_ms", t.exposed},
          {"comm_cpu_ms", t.comm_cpu},   {"compute_cpu_ms", t.compute_cpu},
          {"imbalance_ms", t.imbalance}};
}

ordered_json ratio_json(const PairedRatio& r) {
  return {{"median", r.median}, {"low", r.low}, {"high", r.high}};
}

ordered_json json_of(const OverlapCase& c) {
  return {{"tokens", c.shape.tokens},
          {"phase", to_string(c.shape.phase)},
          {"path", c.path},
          {"micro_batches", c.micro_batches},
          {"t_seq_ms", c.off.step},
          {"t_overlap_ms", c.on.step},
          {"t_compute_ms", c.off.compute},
          {"t_comm_ms", c.comm},
          {"comm_share", c.comm_share},
          {"S", c.speedup.median},
          {"S_star", c.ideal},
          {"eta", c.eta},
          {"h", c.hidden},
          {"sequences", c.shape.sequences},
          {"context", c.shape.context},
          {"decodes", c.shape.phase == ProbePhase::kMixed ? c.shape.decodes : 0},
          {"t_auto_ms", c.automatic.step},
          {"auto_micro_batches", c.auto_micro_batches},
          {"auto_reason", c.reason},
          {"S_interval", ratio_json(c.speedup)},
          {"auto_over_off", ratio_json(c.auto_over_off)},
          {"auto_over_best", ratio_json(c.auto_over_best)},
          {"virtual", false},
          {"predicted_on_ms", c.predicted_on},
          {"predicted_lane_per_micro_batch_ms", c.predicted_lanes_apart},
          {"predicted_off_ms", c.predicted_off},
          {"bit_identical", c.exact},
          {"beyond_longer_lane_ms",
           {{"split_price", c.split_price},
            {"comm_cpu", c.comm_cpu_price},
            {"bubbles", c.bubbles},
            {"imbalance_and_wakeups", c.rest}}},
          {"off", times_json(c.off)},
          {"split_alone", times_json(c.split)},
          {"on", times_json(c.on)},
          {"auto", times_json(c.automatic)}};
}

std::string text_of(const VirtualCase& c) {
  return fmt::format(
      "{}, {}, in virtual time: off {:.1f} ms, on with {} micro-batches {:.1f} ms (S {:.3f}), with a comm "
      "lane "
      "per micro-batch {:.1f} ms\n",
      describe(c.shape), c.path, c.off, c.micro_batches, c.on, c.off / c.on, c.lanes_apart);
}

ordered_json json_of(const VirtualCase& c) {
  const double longer = std::max(c.compute, c.comm), shorter = std::min(c.compute, c.comm);
  return {{"tokens", c.shape.tokens},
          {"phase", to_string(c.shape.phase)},
          {"path", c.path},
          {"micro_batches", c.micro_batches},
          {"t_seq_ms", c.off},
          {"t_overlap_ms", c.on},
          {"t_compute_ms", c.compute},
          {"t_comm_ms", c.comm},
          {"comm_share", c.comm / (c.compute + c.comm)},
          {"S", c.off / c.on},
          {"S_star", (c.compute + c.comm) / longer},
          {"eta", longer / c.on},
          {"h", (c.off - c.on) / shorter},
          {"sequences", c.shape.sequences},
          {"context", c.shape.context},
          {"decodes", c.shape.phase == ProbePhase::kMixed ? c.shape.decodes : 0},
          {"virtual", true},
          {"predicted_lane_per_micro_batch_ms", c.lanes_apart}};
}

}  // namespace

int verb_bench_overlap(const Flags& flags, const CliContext& context) {
  LlmOptions llm = llm_options(flags);
  llm.skip_tokenizer_init = true;
  const std::vector<ProbeShape> shapes = shapes_of(flags, "tokens");
  const std::vector<ProbeShape> virtual_shapes = shapes_of(flags, "virtual-tokens");
  std::vector<double> shares;
  if (flags.given("comm-share")) {
    if (is_mpi_worker() || llm.distributed_executor_backend == "mpi")
      throw UsageError(
          "--comm-share shapes the link between thread ranks; between processes the link is what it is "
          "(bench/two_hosts.sh shapes one)");
    shares = numbers(flags, "comm-share", 0.001, 0.999);
  }
  OverlapBenchOptions options;
  options.repeats = static_cast<int>(flags.integer("repeats"));
  options.micro_batches = llm.micro_batches;
  llm.dbo = "auto";
  if (llm.tensor_parallel_size < 2)
    throw UsageError("one rank has no communication to hide; give --tensor-parallel-size 2 or more");
  const RankOptions ranks = options_for(llm, flags, shapes);
  std::unique_ptr<OutputFile> json;
  if (flags.given("json") && !is_mpi_worker())
    json = std::make_unique<OutputFile>(flags.text("json"), context.out);
  // Written at the end: better to know now that it cannot be.
  if (flags.given("trace") && !is_mpi_worker()) OutputFile(flags.text("trace"), context.out);

  ProgressView view(context);
  const std::unique_ptr<RankGroup> group =
      RankGroup::start(ranks, [&](double fraction) { view.loading(fraction); });
  if (!group) return kExitOk;
  view.clear();
  context.err << fmt::format("{} ranks over {}, level {}, medians of {}\n", ranks.ranks,
                             group->info().transport, to_string(group->info().cpu_level), options.repeats);
  ordered_json cases = ordered_json::array();
  bool exact = true;
  const auto measure = [&](const ProbeShape& shape) {
    OverlapCase c = bench_overlap_case(*group, shape, options, [&](int done, int of) {
      view.measuring(describe(shape), static_cast<double>(done) / of);
    });
    c.path = llm.expert_path;
    view.clear();
    context.out << text_of(c) << std::flush;
    cases.push_back(json_of(c));
    exact = exact && c.exact;
  };
  const auto simulate_rest = [&] {
    for (const ProbeShape& shape : virtual_shapes) {
      VirtualCase c = virtual_case(*group, shape, options);
      if (c.on <= 0 || c.off <= 0) continue;
      c.path = llm.expert_path;
      context.out << text_of(c) << std::flush;
      cases.push_back(json_of(c));
    }
  };
  if (shares.empty()) {
    group->calibrate();
    for (const ProbeShape& shape : shapes) measure(shape);
    simulate_rest();
  }
  for (double share : shares) {
    for (const ProbeShape& shape : shapes) {
      const double rate = set_comm_share(*group, shape, share);
      context.err << fmt::format("link of {:.1f} Mbit/s for a share of {:.0f} %\n", rate * 8e-6, 100 * share);
      measure(shape);
    }
    simulate_rest();
  }
  if (flags.given("trace")) group->write_trace(flags.text("trace"));
  if (json) {
    json->stream() << json_text(cases, 2) << '\n';
    json->commit();
  }
  if (!exact) context.err << "duet bench overlap: logits differ between off and on\n";
  return exact ? kExitOk : kExitError;
}

}  // namespace duet
