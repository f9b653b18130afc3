#include "engine/planner.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/probe_batch.h"
#include "overlap/schedule.h"
#include "overlap/validator.h"
#include "sim/search.h"
#include "sim/simulator.h"

namespace duet {
namespace {

ModelConfig small_config() {
  ModelConfig c;
  c.vocab_size = 100;
  c.hidden_size = 64;
  c.num_hidden_layers = 3;
  c.num_attention_heads = 4;
  c.q_lora_rank = 24;
  c.kv_lora_rank = 16;
  c.qk_nope_head_dim = 16;
  c.qk_rope_head_dim = 8;
  c.v_head_dim = 16;
  c.intermediate_size = 128;
  c.moe_intermediate_size = 32;
  c.n_routed_experts = 8;
  c.num_experts_per_tok = 2;
  c.n_shared_experts = 1;
  c.first_k_dense_replace = 1;
  return c;
}

// Attention, a reduction, a feed-forward, a reduction: four layers and a head.
Recording record(int micro_batches) {
  Stages s;
  for (int m = 0; m < micro_batches; ++m) {
    s.begin_micro_batch(m);
    for (int l = 0; l < 4; ++l) {
      s.begin_layer(l);
      const BufferId x = s.buffer("x"), part = s.buffer("part");
      s.compute("attn_in", {x}, {part, s.kv()}, {});
      s.compute("attn_core", s.kv_so_far(), {part}, {});
      s.collective("attn_reduce", {part, x}, {x}, {});
      s.compute("mlp", {x}, {part}, {});
      s.collective("mlp_reduce", {part, x}, {x}, {});
    }
    s.begin_layer(-1);
    s.compute("head", {s.buffer("x")}, {s.buffer("logits")}, {});
  }
  return s.take();
}

// What a made-up machine takes: every stage reads its weights, then works on its rows.
struct Machine {
  double weights_ns = 1e6;
  double row_ns = 20e3;
  double key_ns = 10;
  double wire_row_ns = 15e3;

  double cost(const StageKinds::Kind& kind, double rows, const AttentionWork& attention) const {
    if (rows == 0) return 0;
    if (kind.lane == Lane::kComm) return 50e3 + wire_row_ns * rows;
    if (kind.attention) return key_ns * (attention[2] + 2 * attention[4]) + 1e3 * rows;
    return weights_ns + row_ns * rows;
  }
};

class PlannerTest : public testing::Test {
 protected:
  PlannerTest()
      : planner(small_config(), 2, 6, [this](int m) -> const Recording& { return recordings.at(m); }) {}

  static StepBatch step(ProbePhase phase, int64_t tokens, int64_t sequences = 1, int64_t context = 0) {
    ProbeShape shape;
    shape.phase = phase;
    shape.tokens = tokens;
    shape.sequences = sequences;
    shape.context = context;
    return probe_batch(shape, 16, 100);
  }

  // Times of a batch on the machine, as the ranks would report them.
  ObservedStep run(const Machine& machine, const StepBatch& batch, const Program& program) const {
    const StageKinds kinds(program.stages);
    const auto work = work_of(batch);
    ObservedStep observed;
    std::vector<double> costs;
    for (size_t s = 0; s < program.stages.size(); ++s) {
      const int c = kinds.class_of(s);
      const MicroBatchWork& w = work[static_cast<size_t>(program.stages[s].micro_batch)];
      const size_t wanted = static_cast<size_t>(c) % kRowSets;
      costs.push_back(machine.cost(kinds.kinds()[static_cast<size_t>(c) / kRowSets], w.rows[wanted],
                                   w.attention[wanted]));
      observed.busy_ns.push_back(static_cast<float>(costs.back()));
    }
    const SimulatedRun virtual_run = simulate(program, costs);
    observed.step_ns = virtual_run.makespan_ns;
    observed.exposed_ns = virtual_run.exposed_ns;
    return observed;
  }

  double true_time(const Machine& machine, const StepBatch& batch) const {
    const Recording& r = recordings.at(batch.micro_batches());
    const Program program =
        batch.overlap
            ? search_program(r, stage_costs(r.stages, StageKinds(r.stages), batch.stage_ns), batch.stolen)
            : sequential_program(r);
    return run(machine, batch, program).step_ns;
  }

  void calibrate(const Machine& machine) {
    for (int64_t rows = 1; rows <= 512; rows *= 4) {
      for (ProbePhase phase : {ProbePhase::kPrefill, ProbePhase::kDecode}) {
        const StepBatch batch = step(phase, rows, 1, phase == ProbePhase::kDecode ? 100 : 0);
        const Program program = sequential_program(recordings.at(1));
        planner.observe(batch, program, run(machine, batch, program));
      }
    }
  }

  std::map<int, Recording> recordings = [] {
    std::map<int, Recording> all;
    for (int m = 1; m <= 6; ++m) all[m] = record(m);
    return all;
  }();
  Planner planner;
  SplitPolicy on{DboMode::kOn, 0, {2, 2}, 0.1, 0}, automatic{DboMode::kAuto, 0, {2, 2}, 0.1, 0};
};

TEST_F(PlannerTest, EachThresholdActsAtItsEdge) {
  SplitPolicy policy = on;
  policy.thresholds = {8, 3};
  const auto parts = [&](ProbePhase phase, int64_t tokens) {
    StepBatch batch = step(phase, tokens);
    const Plan plan = planner.plan(batch, policy);
    EXPECT_EQ(plan.micro_batches, batch.micro_batches());
    EXPECT_EQ(batch.overlap, batch.micro_batches() > 1);
    return batch.micro_batches();
  };
  EXPECT_EQ(parts(ProbePhase::kPrefill, 7), 1);
  EXPECT_EQ(parts(ProbePhase::kPrefill, 8), 2);
  EXPECT_EQ(parts(ProbePhase::kDecode, 2), 1);
  EXPECT_EQ(parts(ProbePhase::kDecode, 3), 2);
  policy.micro_batches = 3;
  EXPECT_EQ(parts(ProbePhase::kPrefill, 8), 3);
  policy.micro_batches = 1;
  EXPECT_EQ(parts(ProbePhase::kPrefill, 8), 1);
  policy.micro_batches = 2;
  policy.dbo = DboMode::kOff;
  EXPECT_EQ(parts(ProbePhase::kPrefill, 100), 1);
}

TEST_F(PlannerTest, AutoLeavesAStepWholeUntilCostsAreKnown) {
  StepBatch batch = step(ProbePhase::kPrefill, 100);
  EXPECT_EQ(planner.plan(batch, automatic).kind, "costs unknown");
  EXPECT_TRUE(batch.observe);
  EXPECT_EQ(batch.micro_batches(), 1);
}

TEST_F(PlannerTest, AutoSplitsWhatGainsAndLeavesTheRest) {
  const Machine machine;
  calibrate(machine);
  for (int64_t rows : {1, 2, 3, 8, 30, 100, 300, 1000, 2048}) {
    StepBatch batch = step(ProbePhase::kPrefill, rows);
    const Plan plan = planner.plan(batch, automatic);
    StepBatch whole = step(ProbePhase::kPrefill, rows);
    const double off = true_time(machine, whole);
    EXPECT_LE(true_time(machine, batch), off * 1.001) << rows << " rows: " << plan.reason;
    if (rows <= 8) {
      EXPECT_EQ(batch.micro_batches(), 1) << plan.reason;  // weights are read once per part
    }
    if (rows >= 300) {
      EXPECT_GT(batch.micro_batches(), 1) << plan.reason;
      EXPECT_LT(true_time(machine, batch), 0.75 * off);
    }
    // Never much worse than any number of micro-batches that could have been.
    for (int parts : {2, 3, 4, 6}) {
      if (parts > rows) continue;
      SplitPolicy fixed = on;
      fixed.micro_batches = parts;
      StepBatch other = step(ProbePhase::kPrefill, rows);
      planner.plan(other, fixed);
      ASSERT_EQ(other.micro_batches(), parts);
      EXPECT_LE(true_time(machine, batch), true_time(machine, other) * 1.04) << rows << " rows, " << parts;
    }
  }
}

TEST_F(PlannerTest, PredictsSizesItNeverSaw) {
  const Machine machine;
  calibrate(machine);
  for (ProbePhase phase : {ProbePhase::kPrefill, ProbePhase::kDecode}) {
    for (int64_t rows : {5, 48, 200, 700, 2000}) {
      for (const SplitPolicy& policy : {SplitPolicy{}, on}) {
        StepBatch batch = step(phase, rows, 2, 37);
        planner.plan(batch, policy);
        EXPECT_NEAR(planner.predict(batch) / true_time(machine, batch), 1.0, 0.05)
            << to_string(phase) << ' ' << rows << ' ' << batch.micro_batches();
      }
    }
  }
}

TEST_F(PlannerTest, LearnsWhatCollectivesTakeFromTheCore) {
  const Machine machine;
  calibrate(machine);
  StepBatch batch = step(ProbePhase::kPrefill, 512);
  planner.plan(batch, on);
  const Recording& r = recordings.at(batch.micro_batches());
  const auto costs = stage_costs(r.stages, StageKinds(r.stages), batch.stage_ns);
  const Program program = search_program(r, costs);
  // Every stage of computing takes longer by a fifth of the communication beside it.
  ObservedStep observed = run(machine, batch, program);
  const SimulatedRun slow = simulate(program, costs, 0.2);
  double compute = 0, longer = slow.makespan_ns - slow.exposed_ns;
  for (size_t s = 0; s < costs.size(); ++s)
    if (r.stages[s].lane == Lane::kCompute) compute += costs[s];
  for (size_t s = 0; s < costs.size(); ++s)
    if (r.stages[s].lane == Lane::kCompute) observed.busy_ns[s] *= static_cast<float>(longer / compute);
  observed.step_ns = slow.makespan_ns;
  observed.exposed_ns = slow.exposed_ns;
  planner.observe(batch, program, observed);
  EXPECT_NEAR(planner.costs().stolen(512), 0.2, 0.03);
}

TEST_F(PlannerTest, SameFiguresSameDecision) {
  calibrate({});
  StepBatch a = step(ProbePhase::kPrefill, 700, 5), b = a;
  planner.plan(a, automatic);
  planner.plan(b, automatic);
  b.observe = a.observe;
  EXPECT_EQ(a, b);
  const Recording& r = recordings.at(a.micro_batches());
  const Program program =
      search_program(r, stage_costs(r.stages, StageKinds(r.stages), a.stage_ns), a.stolen);
  EXPECT_TRUE(validate(program).empty());
}

TEST_F(PlannerTest, OneRankIsLeftWhole) {
  Planner alone(small_config(), 1, 6, [this](int m) -> const Recording& { return recordings.at(m); });
  StepBatch batch = step(ProbePhase::kPrefill, 1000);
  EXPECT_EQ(alone.plan(batch, automatic).kind, "one rank");
  EXPECT_FALSE(batch.observe);
}

TEST_F(PlannerTest, CostsSurviveARestart) {
  const Machine machine;
  calibrate(machine);
  const std::string text = planner.costs().dump(planner.kinds());
  Planner next(small_config(), 2, 6, [this](int m) -> const Recording& { return recordings.at(m); });
  ASSERT_TRUE(next.load_costs(text));
  StepBatch a = step(ProbePhase::kDecode, 90, 1, 50), b = a;
  planner.plan(a, automatic);
  next.plan(b, automatic);
  EXPECT_EQ(a.borders, b.borders);
  EXPECT_EQ(a.stage_ns, b.stage_ns);
  EXPECT_FALSE(next.load_costs("{"));
  EXPECT_FALSE(next.load_costs("{}"));
  EXPECT_FALSE(next.load_costs(text.substr(0, text.size() / 2)));
  EXPECT_EQ(next.costs().dump(next.kinds()), text);
}

TEST(BordersAt, Edges) {
  using Borders = std::vector<int64_t>;
  EXPECT_EQ(borders_at(10, 1, 2), (Borders{0, 1, 10}));
  EXPECT_EQ(borders_at(10, 9, 2), (Borders{0, 9, 10}));
  EXPECT_EQ(borders_at(10, 10, 2), (Borders{0, 10}));
  EXPECT_EQ(borders_at(10, 11, 2), (Borders{0, 10}));
  EXPECT_EQ(borders_at(10, 4, 3), (Borders{0, 4, 7, 10}));
  EXPECT_EQ(borders_at(10, 9, 3), (Borders{0, 9, 10}));  // the rest is one row: no empty part
  EXPECT_EQ(borders_at(10, 7, 5), (Borders{0, 7, 8, 9, 10}));
  EXPECT_EQ(borders_at(10, 3, 1), (Borders{0, 3, 10}));
}

TEST(RowCost, CountsTheFormsAndLayers) {
  ModelConfig c = small_config();
  const RowCost expanded = row_cost(c, AttentionForm::kExpanded),
                absorbed = row_cost(c, AttentionForm::kAbsorbed);
  // Per layer: 24·64 + 24·96 (q) + 64·24 (kv_a) + 4·16·32 (kv_b) + 4·16·64 (o) = 11520; dense
  // 3·64·128 = 24576, MoE 3·64·32·3 + 64·8 = 18944.
  EXPECT_EQ(expanded.row, 3 * 11520 + 24576 + 2 * 18944);
  EXPECT_EQ(expanded.key, 3 * 4 * (24 + 16));
  EXPECT_EQ(absorbed.row, expanded.row);
  EXPECT_EQ(absorbed.key, 3 * 4 * (2 * 16 + 8));
  c.q_lora_rank = 0;
  EXPECT_EQ(row_cost(c, AttentionForm::kExpanded).row, expanded.row - 3 * (24 * 64 + 24 * 96) + 3 * 64 * 96);
}

}  // namespace
}  // namespace duet
