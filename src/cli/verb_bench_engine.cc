// duet bench engine: tokens per second of prefill and decode, as other engines' benchmarks count them:
// whole steps on every rank, from token ids to logits on rank 0, without sampling and text.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <ostream>
#include <random>

#include "base/clock.h"
#include "base/json_text.h"
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
#include "engine/probe_batch.h"

namespace duet {
namespace {

using nlohmann::ordered_json;

struct Case {
  ProbePhase phase;
  int64_t tokens;  // prefill: of the prompt; decode: of each sequence
  int64_t sequences;
  int64_t context;
};

struct Rate {
  double mean = 0, deviation = 0;  // tokens per second
};

Rate rate_of(const std::vector<double>& rates) {
  Rate r;
  for (const double v : rates) r.mean += v / static_cast<double>(rates.size());
  for (const double v : rates) r.deviation += (v - r.mean) * (v - r.mean);
  r.deviation = rates.size() > 1 ? std::sqrt(r.deviation / static_cast<double>(rates.size() - 1)) : 0.0;
  return r;
}

std::vector<int64_t> batches(const Flags& flags) {
  std::vector<int64_t> values;
  for (const int32_t id : parse_token_ids(flags.text("batch"), flags.shown("batch"))) {
    if (id < 1 || id > 65536)
      throw UsageError(fmt::format("{}: {} is not in [1, 65536]", flags.shown("batch"), id));
    values.push_back(id);
  }
  return values;
}

std::vector<Case> cases_of(const Flags& flags) {
  std::vector<Case> cases;
  const int64_t prompt = flags.integer("prompt-tokens"), gen = flags.integer("gen-tokens");
  const int64_t context = flags.integer("context");
  if (prompt > 0) cases.push_back({ProbePhase::kPrefill, prompt, 1, context});
  if (gen > 0)
    for (const int64_t b : batches(flags)) cases.push_back({ProbePhase::kDecode, gen, b, context});
  if (cases.empty())
    throw UsageError(fmt::format("{} and {} are both 0: nothing to measure", flags.shown("prompt-tokens"),
                                 flags.shown("gen-tokens")));
  return cases;
}

ProbeShape step_of(const Case& c, int64_t context) {
  ProbeShape shape;
  shape.phase = c.phase;
  shape.tokens = c.phase == ProbePhase::kPrefill ? c.tokens : c.sequences;
  shape.sequences = c.sequences;
  shape.context = context;
  return shape;
}

/// Room for the largest step and the longest sequences.
RankOptions rank_options(const LlmOptions& o, const std::vector<Case>& cases) {
  const ModelConfig config = read_model_config(o);
  int64_t rows = 1, blocks = 1, positions = 0;
  for (const Case& c : cases) {
    const int64_t last = c.phase == ProbePhase::kPrefill ? c.context : c.context + c.tokens;
    rows = std::max(rows, step_of(c, last).rows());
    blocks = std::max(blocks, step_of(c, last).blocks(o.block_size));
    positions = std::max(positions, c.context + c.tokens);
  }
  if (positions > config.max_position_embeddings)
    throw UsageError(fmt::format("context and tokens together are {}; the model has {} positions", positions,
                                 config.max_position_embeddings));
  return options_with_room(o, config, rows, blocks);
}

class EngineBench {
 public:
  EngineBench(RankGroup& group, const SplitPolicy& policy) : group_(group), policy_(policy) {}

  /// One repeat: tokens per second.
  double run(const Case& c) {
    if (c.phase == ProbePhase::kPrefill) {
      const int64_t begin = now_ns();
      step(step_of(c, c.context));
      return static_cast<double>(c.tokens) * 1e9 / static_cast<double>(now_ns() - begin);
    }
    int64_t ns = 0;
    for (int64_t t = 0; t < c.tokens; ++t) ns += step(step_of(c, c.context + t));
    return static_cast<double>(c.tokens * c.sequences) * 1e9 / static_cast<double>(ns);
  }
  /// Caches, page tables and clocks as they are in the middle of a run.
  void warm_up(const Case& c) {
    Case once = c;
    if (c.phase == ProbePhase::kDecode) once.tokens = std::min<int64_t>(c.tokens, 4);
    run(once);
  }

 private:
  int64_t step(const ProbeShape& shape) {
    const ModelInfo& info = group_.info();
    StepBatch batch = probe_batch(shape, info.block_size, info.config.vocab_size);
    // New tokens in every step: the same ones would find their experts in the cache.
    for (int32_t& id : batch.token_ids)
      id = static_cast<int32_t>(random_() % static_cast<uint32_t>(info.config.vocab_size));
    const int64_t begin = now_ns();
    group_.run(batch, policy_);
    return now_ns() - begin;
  }

  RankGroup& group_;
  SplitPolicy policy_;
  std::mt19937 random_{1};
};

std::string name_of(const Case& c) {
  std::string name = c.phase == ProbePhase::kPrefill ? fmt::format("prefill {}", c.tokens)
                                                     : fmt::format("decode {} x {}", c.tokens, c.sequences);
  return c.context > 0 ? fmt::format("{} at {}", name, c.context) : name;
}

}  // namespace

int verb_bench_engine(const Flags& flags, const CliContext& context) {
  LlmOptions llm = llm_options(flags);
  const std::vector<Case> cases = cases_of(flags);
  const int64_t repeats = flags.integer("repeats");
  const RankOptions options = rank_options(llm, cases);
  std::unique_ptr<OutputFile> json;
  if (flags.given("json") && !is_mpi_worker())
    json = std::make_unique<OutputFile>(flags.text("json"), context.out);
  ProgressView view(context);
  const std::unique_ptr<RankGroup> group =
      RankGroup::start(options, [&](double fraction) { view.loading(fraction); });
  if (!group) return kExitOk;
  view.clear();
  const SplitPolicy policy = split_policy(llm);
  if (policy.dbo != DboMode::kOff && options.ranks > 1) group->calibrate();
  const std::string weights = !llm.quantization.empty() ? llm.quantization
                              : group->info().config.quant.layout.empty()
                                  ? std::string(to_string(group->info().dtype))
                                  : group->info().config.quant.layout;
  context.err << fmt::format("{} rank{}, {} thread{} each, level {}, {}, {} repeats\n", options.ranks,
                             options.ranks == 1 ? "" : "s", llm.threads, llm.threads == 1 ? "" : "s",
                             to_string(group->info().cpu_level), weights, repeats);
  EngineBench bench(*group, policy);
  ordered_json rows = ordered_json::array();
  for (const Case& c : cases) {
    bench.warm_up(c);
    std::vector<double> rates;
    for (int64_t r = 0; r < repeats; ++r) {
      rates.push_back(bench.run(c));
      view.measuring(name_of(c), static_cast<double>(r + 1) / static_cast<double>(repeats));
    }
    view.clear();
    const Rate rate = rate_of(rates);
    if (!(json && flags.text("json") == "-"))
      context.out << fmt::format("{:<24} {:>9.1f} ± {:.1f} tokens/s\n", name_of(c), rate.mean, rate.deviation)
                  << std::flush;
    rows.push_back({{"phase", to_string(c.phase)},
                    {"tokens", c.tokens},
                    {"batch", c.sequences},
                    {"context", c.context},
                    {"weights", weights},
                    {"ranks", options.ranks},
                    {"threads", llm.threads},
                    {"tokens_per_second", rate.mean},
                    {"deviation", rate.deviation},
                    {"runs", rates}});
  }
  if (json) {
    json->stream() << json_text(rows, 2) << '\n';
    json->commit();
  }
  return kExitOk;
}

}  // namespace duet
