#include "engine/planner.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/log.h"
#include "engine/step_program.h"
#include "overlap/schedule.h"
#include "sim/search.h"
#include "sim/simulator.h"

namespace duet {

namespace {

// Numbers of micro-batches that are tried.
constexpr int kCounts[] = {2, 3, 4, 6};
// A split must be predicted to win by this much: predictions err by a few per cent, and whole steps read
// every weight once.
constexpr double kMargin = 0.03;
// Among splits this close the most parts win: the lanes of small parts meet sooner at both ends of a step,
// and leave more slack where a stage takes longer than predicted.
constexpr double kAlike = 0.01;
// Every so many steps all ranks' times are gathered (a message of a few kilobytes after the step).
constexpr int64_t kObserveEvery = 16;
constexpr int64_t kObserveFirst = 64;  // these all
// A step that took so much more or less than predicted makes all choices anew.
constexpr double kMovedShare = 0.1;
constexpr size_t kMostChoices = 1024;

int64_t coarse(double x) {
  return x <= 16 ? static_cast<int64_t>(x) : static_cast<int64_t>(std::lround(8.0 * std::log2(x))) + 1000;
}

std::string ms(double ns) {
  return fmt::format("{:.1f} ms", ns * 1e-6);
}

}  // namespace

bool has_prefill(const StepBatch& batch) {
  return std::any_of(batch.spans.begin(), batch.spans.end(),
                     [](const SequenceSpan& s) { return s.form == AttentionForm::kExpanded || s.rows > 1; });
}

RowCost row_cost(const ModelConfig& c, AttentionForm form) {
  const double heads = static_cast<double>(c.num_attention_heads),
               hidden = static_cast<double>(c.hidden_size);
  double attention = 0, key = 0;
  if (c.latent_attention()) {
    const double lora = static_cast<double>(c.kv_lora_rank), rope = static_cast<double>(c.qk_rope_head_dim);
    const double nope = static_cast<double>(c.qk_nope_head_dim), v = static_cast<double>(c.v_head_dim);
    const double q_lora = static_cast<double>(c.q_lora_rank);
    const double q = heads * (nope + rope);
    attention = (c.q_lora_rank > 0 ? q_lora * (hidden + q) : hidden * q) + hidden * (lora + rope) +
                heads * lora * (nope + v) + heads * v * hidden;
    key = heads * (form == AttentionForm::kAbsorbed ? 2.0 * lora + rope : nope + rope + v);
  } else {
    const double kv_heads = static_cast<double>(c.num_key_value_heads);
    const double head_dim = static_cast<double>(c.head_dim);
    attention = 2.0 * hidden * (heads + kv_heads) * head_dim;
    key = 2.0 * heads * head_dim;
  }
  const double moe_layers = static_cast<double>(c.num_moe_layers());
  const double layers = static_cast<double>(c.num_hidden_layers);
  const double dense = 3.0 * hidden * static_cast<double>(c.intermediate_size);
  const double experts = 3.0 * hidden * static_cast<double>(c.moe_intermediate_size) *
                             static_cast<double>(c.num_experts_per_tok + c.n_shared_experts) +
                         hidden * static_cast<double>(c.n_routed_experts);
  RowCost cost;
  cost.row = layers * attention + (layers - moe_layers) * dense + moe_layers * experts;
  cost.key = layers * key;
  return cost;
}

std::vector<int64_t> borders_at(int64_t rows, int64_t split_at, int micro_batches) {
  if (split_at <= 0 || split_at >= rows) return {0, rows};
  std::vector<int64_t> borders{0, split_at};
  const int64_t rest = rows - split_at;
  const int64_t parts = std::clamp<int64_t>(micro_batches - 1, 1, rest);
  for (int64_t part = 1; part <= parts; ++part) borders.push_back(split_at + rest * part / parts);
  return borders;
}

Planner::Planner(const ModelConfig& config, int ranks, int max_micro_batches,
                 std::function<const Recording&(int)> recording)
    : ranks_(ranks),
      max_micro_batches_(max_micro_batches),
      recording_(std::move(recording)),
      kinds_(std::make_unique<StageKinds>(recording_(1).stages)),
      expanded_cost_(row_cost(config, AttentionForm::kExpanded)),
      absorbed_cost_(row_cost(config, AttentionForm::kAbsorbed)) {}

// Two spans of one sequence may be parted like any others: the second reads what the first wrote. Once costs
// are measured, a key visited counts with what it takes.
std::vector<SpanShape> Planner::shapes(const StepBatch& batch) const {
  RowCost expanded = expanded_cost_, absorbed = absorbed_cost_;
  if (!costs_.empty()) {
    const std::vector<MicroBatchWork> work = work_of(batch);
    const std::vector<float> ns = costs_.predict(*kinds_, work, false);
    double row = 0, layers = 0;
    const Recording& r = recording_(1);
    for (size_t s = 0; s < r.stages.size(); ++s) {
      const StageKinds::Kind& kind = kinds_->kinds()[static_cast<size_t>(kinds_->class_of(s)) / kRowSets];
      if (kind.attention) layers += 1;
      if (kind.lane == Lane::kCompute && !kind.attention)
        row += double{ns[static_cast<size_t>(kinds_->class_of(s))]};
    }
    row /= std::max(work[0].rows[0], 1.0);
    const AttentionWork& c = costs_.attention().coefficients();
    const auto fitted = [&](double per_row, double per_key) {
      return RowCost{row + layers * per_row, layers * per_key};
    };
    if (row > 0) {
      if (c[0] + c[1] + c[2] > 0) expanded = fitted(c[0] + c[1], c[2]);
      if (c[3] + c[4] > 0) absorbed = fitted(c[3], c[4]);
    }
  }
  std::vector<SpanShape> shapes;
  shapes.reserve(batch.spans.size());
  for (const SequenceSpan& span : batch.spans)
    shapes.push_back(
        {span.rows, span.start_position, span.form == AttentionForm::kExpanded ? expanded : absorbed});
  return shapes;
}

// Cuts and predicts. Leaves the batch cut.
Planner::Choice Planner::consider(StepBatch& batch, const std::vector<SpanShape>& spans,
                                  const SplitOptions& split) const {
  batch.borders = split_rows(spans, split);
  const int parts = batch.micro_batches();
  const bool overlapped = parts > 1;
  const std::vector<MicroBatchWork> work = work_of(batch);
  const double rows = static_cast<double>(batch.rows());
  Choice choice;
  choice.split = split;
  choice.stage_ns = costs_.predict(*kinds_, work, overlapped);
  choice.stolen = overlapped ? static_cast<float>(costs_.stolen(rows)) : 0.0f;
  const Recording& r = recording_(parts);
  const StageKinds kinds(r.stages);
  const std::vector<double> costs = stage_costs(r.stages, kinds, choice.stage_ns);
  const double stolen = double{choice.stolen};
  const Program program = overlapped ? search_program(r, costs, stolen) : sequential_program(r);
  const SimulatedRun run = simulate(program, costs, stolen);
  const double ns = run.makespan_ns * costs_.drag(rows, overlapped);
  double comm = 0, compute = 0;
  for (size_t s = 0; s < costs.size(); ++s) (r.stages[s].lane == Lane::kComm ? comm : compute) += costs[s];
  choice.plan.micro_batches = parts;
  choice.plan.bubbles_ns = run.makespan_ns - std::max(run.makespan_ns - run.exposed_ns, comm);
  choice.plan.predicted_ns = ns;
  choice.plan.candidates = {{parts, ns, compute, comm}};
  return choice;
}

Planner::Choice Planner::choose(const StepBatch& batch, const SplitPolicy& policy, bool whole_too) const {
  StepBatch cut;  // what the cost depends on
  cut.token_ids = batch.token_ids;
  cut.spans = batch.spans;
  cut.logits_rows = batch.logits_rows;
  cut.best_rows = batch.best_rows;
  cut.borders = {0, batch.rows()};
  const std::vector<SpanShape> spans = shapes(cut);
  std::vector<Choice> choices;
  const auto consider_parts = [&](int parts) {
    SplitOptions split;
    split.imbalance = policy.imbalance;
    split.micro_batches = parts;
    choices.push_back(consider(cut, spans, split));
  };
  if (whole_too) consider_parts(1);
  if (policy.micro_batches > 0) {
    consider_parts(std::min(policy.micro_batches, max_micro_batches_));
  } else {
    for (int parts : kCounts)
      if (parts <= max_micro_batches_ && parts <= batch.rows()) consider_parts(parts);
  }
  double whole = 0, least = std::numeric_limits<double>::infinity();
  std::vector<PlanCandidate> candidates;
  for (const Choice& c : choices) {
    candidates.insert(candidates.end(), c.plan.candidates.begin(), c.plan.candidates.end());
    if (c.plan.micro_batches == 1)
      whole = c.plan.predicted_ns;
    else
      least = std::min(least, c.plan.predicted_ns);
  }
  Choice* chosen = &choices.front();
  for (Choice& c : choices) {
    const double ns = c.plan.predicted_ns;
    if (c.plan.micro_batches > 1 && ns <= least * (1.0 + kAlike) &&
        (whole <= 0 || ns < whole * (1.0 - kMargin)))
      chosen = &c;
  }
  Choice best = std::move(*chosen);
  best.plan.candidates = std::move(candidates);
  Plan& plan = best.plan;
  std::string others;
  for (const PlanCandidate& c : plan.candidates)
    if (c.micro_batches != plan.micro_batches)
      others += fmt::format(", {} {}", c.micro_batches == 1 ? "whole" : std::to_string(c.micro_batches),
                            ms(c.predicted_ns));
  if (plan.micro_batches == 1) {
    plan.kind = "whole is faster";
    plan.reason = fmt::format("whole: predicted {}{}", ms(plan.predicted_ns), others);
  } else {
    plan.kind = fmt::format("{} micro-batches{}", plan.micro_batches, whole > 0 ? " are faster" : "");
    plan.reason =
        fmt::format("{} micro-batches: predicted {}{}", plan.micro_batches, ms(plan.predicted_ns), others);
  }
  return best;
}

Plan Planner::plan(StepBatch& batch, const SplitPolicy& policy) {
  const int64_t rows = batch.rows();
  batch.borders = {0, rows};
  batch.overlap = false;
  batch.observe =
      policy.dbo != DboMode::kOff && ranks_ > 1 && (steps_ < kObserveFirst || steps_ % kObserveEvery == 0);
  ++steps_;
  const auto plain = [](const char* kind) {
    Plan plan;
    plan.kind = plan.reason = kind;
    return plan;
  };
  if (policy.split_at > 0) {
    batch.borders = borders_at(rows, policy.split_at, std::max(policy.micro_batches, 2));
    batch.overlap = batch.micro_batches() > 1;
    Plan plan = plain("--split-at");
    plan.micro_batches = batch.micro_batches();
    return plan;
  }
  if (policy.dbo == DboMode::kOff || max_micro_batches_ < 2 || policy.micro_batches == 1) return plain("off");
  if (policy.dbo == DboMode::kAuto && ranks_ == 1) return plain("one rank");
  if (rows < 2 ||
      (policy.dbo == DboMode::kOn && !worth_splitting(rows, has_prefill(batch), policy.thresholds)))
    return plain("below the threshold");
  if (costs_.empty()) {
    if (policy.dbo == DboMode::kAuto) return plain("costs unknown");
    SplitOptions split;
    split.micro_batches = policy.micro_batches > 0 ? policy.micro_batches : 2;
    split.imbalance = policy.imbalance;
    batch.borders = split_rows(shapes(batch), split);
    batch.overlap = true;
    Plan plan = plain("on, costs unknown");
    plan.micro_batches = batch.micro_batches();
    return plan;
  }

  if (choices_version_ != costs_.version() || choices_.size() > kMostChoices) {
    choices_.clear();
    choices_version_ = costs_.version();
  }
  const MicroBatchWork work = work_of(batch).front();
  std::vector<int64_t> key{static_cast<int64_t>(policy.dbo),
                           policy.micro_batches,
                           static_cast<int64_t>(policy.imbalance * 1e6),
                           coarse(work.rows[0]),
                           coarse(work.rows[1]),
                           coarse(work.rows[2]),
                           coarse(static_cast<double>(batch.spans.size()))};
  for (double feature : work.attention[0]) key.push_back(coarse(feature));
  auto found = choices_.find(key);
  if (found == choices_.end()) {
    found = choices_.emplace(key, choose(batch, policy, policy.dbo == DboMode::kAuto)).first;
    // The first step of each kind is told, the others are in the report and the trace.
    const Plan& made = found->second.plan;
    const bool first = policy.dbo == DboMode::kAuto && told_.insert(made.micro_batches).second;
    log_line(first ? LogLevel::kInfo : LogLevel::kDebug,
             fmt::format("dbo: a step of {} tokens, {}", rows, made.reason));
  }
  const Choice& choice = found->second;
  if (choice.plan.micro_batches > 1) {
    batch.borders = split_rows(shapes(batch), choice.split);
    batch.overlap = batch.micro_batches() > 1;
    // The coarse key may stand for a step of other parts: then the order by turns does.
    if (batch.micro_batches() == choice.plan.micro_batches) {
      batch.stage_ns = choice.stage_ns;
      batch.stolen = choice.stolen;
    }
  }
  return choice.plan;
}

double Planner::predict(const StepBatch& batch, CommLanes lanes) const {
  if (costs_.empty()) return 0;
  const Recording& r = recording_(batch.micro_batches());
  const StageKinds kinds(r.stages);
  const double rows = static_cast<double>(batch.rows());
  const double stolen = batch.overlap ? costs_.stolen(rows) : 0.0;
  const std::vector<double> costs =
      stage_costs(r.stages, kinds, costs_.predict(*kinds_, work_of(batch), batch.overlap));
  // A batch without costs of its own has an order found on today's.
  const Program program =
      batch.overlap && batch.stage_ns.empty() ? search_program(r, costs, stolen) : step_program(r, batch);
  return simulate(program, costs, stolen, lanes).makespan_ns * costs_.drag(rows, batch.overlap);
}

void Planner::observe(const StepBatch& batch, const Program& program, const ObservedStep& step) {
  const StageKinds kinds(program.stages);
  const std::vector<MicroBatchWork> work = work_of(batch);
  const double rows = static_cast<double>(batch.rows());
  const auto simulated = [&] {
    const std::vector<double> costs =
        stage_costs(program.stages, kinds, costs_.predict(kinds, work, batch.overlap));
    return simulate(program, costs, batch.overlap ? costs_.stolen(rows) : 0.0).makespan_ns;
  };
  const double expected = costs_.empty() ? 0 : simulated() * costs_.drag(rows, batch.overlap);
  costs_.observe(kinds, work, program, step);
  // Against what the measured stages add up to: what is left is not a stage's cost but ranks and lanes that
  // wait.
  const std::vector<double> measured(step.busy_ns.begin(), step.busy_ns.end());
  if (const double busy = simulate(program, measured).makespan_ns; busy > 0)
    costs_.observe_drag(rows, batch.overlap, step.step_ns / busy);
  if (std::abs(step.step_ns - expected) > kMovedShare * expected) costs_.expire();
}

}  // namespace duet
