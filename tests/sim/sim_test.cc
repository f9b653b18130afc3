#include <gtest/gtest.h>

#include <random>

#include "overlap/validator.h"
#include "sim/search.h"
#include "sim/simulator.h"

namespace duet {
namespace {

// Layers of `in` → reduce* → `mlp` → reduce*, as the all-reduce path has them.
Recording layers(int micro_batches, int count) {
  Stages s;
  for (int m = 0; m < micro_batches; ++m) {
    s.begin_micro_batch(m);
    for (int l = 0; l < count; ++l) {
      s.begin_layer(l);
      const BufferId x = s.buffer("x"), part = s.buffer("part");
      s.compute("in", {x}, {part, s.kv()}, {});
      s.compute("core", s.kv_so_far(), {part}, {});
      s.collective("attn_reduce", {part, x}, {x}, {});
      s.compute("mlp", {x}, {part}, {});
      s.collective("mlp_reduce", {part, x}, {x}, {});
    }
  }
  return s.take();
}

std::vector<double> costs_of(const Recording& r, double in, double core, double mlp, double reduce) {
  std::vector<double> costs;
  for (const Stage& s : r.stages) {
    costs.push_back(s.lane == Lane::kComm ? reduce : s.kind == "in" ? in : s.kind == "core" ? core : mlp);
  }
  return costs;
}

TEST(Simulator, SequentialTakesTheSum) {
  const Recording r = layers(2, 3);
  const SimulatedRun run = simulate(sequential_program(r), costs_of(r, 2, 3, 5, 4));
  EXPECT_DOUBLE_EQ(run.makespan_ns, 2 * 3 * (2 + 3 + 5 + 4 + 4));
  EXPECT_DOUBLE_EQ(run.exposed_ns, 2 * 3 * 8);
}

TEST(Simulator, CommLanesApartShareTheLink) {
  // Two micro-batches whose only stages are collectives that wait for nothing: in one lane one after the
  // other, in two lanes at once at half the speed; either way the link is busy for 10.
  Stages s;
  for (int m = 0; m < 2; ++m) {
    s.begin_micro_batch(m);
    s.collective("reduce", {s.buffer("a")}, {s.buffer("b")}, {});
    s.compute("use", {s.buffer("b")}, {s.buffer("c")}, {});
  }
  const Recording r = s.take();
  const std::vector<double> costs{4, 1, 6, 1};
  const Program program = overlapped_program(r);
  EXPECT_DOUBLE_EQ(simulate(program, costs).makespan_ns, 11);
  // The first ends at 8, the second has 2 left and ends at 10.
  const SimulatedRun apart = simulate(program, costs, 0, CommLanes::kPerMicroBatch);
  EXPECT_DOUBLE_EQ(apart.makespan_ns, 11);
  EXPECT_DOUBLE_EQ(apart.start_ns[1], 8);
}

TEST(Simulator, ByHand) {
  // A: in 2, core 3, reduce 4; B the same, in turns. B's computing covers A's reduction; B's is exposed
  // but for nothing: the lanes end at 5 + 5 + 4.
  Stages s;
  for (int m = 0; m < 2; ++m) {
    s.begin_micro_batch(m);
    s.compute("in", {}, {s.buffer("a")}, {});
    s.compute("core", {s.buffer("a")}, {s.buffer("b")}, {});
    s.collective("reduce", {s.buffer("b")}, {s.buffer("c")}, {});
  }
  const Recording r = s.take();
  const SimulatedRun run = simulate(overlapped_program(r), std::vector<double>{2, 3, 4, 2, 3, 4});
  EXPECT_DOUBLE_EQ(run.makespan_ns, 14);
  EXPECT_DOUBLE_EQ(run.exposed_ns, 4);
  EXPECT_DOUBLE_EQ(run.start_ns[5], 10);
}

TEST(Simulator, AProgramThatRunsAheadFillsItsWaits) {
  // A: in 2, reduce 9, out 1; B: in 5. In order: 2 + 9 + 1 + 5; ahead, B runs under A's reduction.
  Stages s;
  s.begin_micro_batch(0);
  s.compute("in", {}, {s.buffer("a")}, {});
  s.collective("reduce", {s.buffer("a")}, {s.buffer("b")}, {});
  s.compute("out", {s.buffer("b")}, {s.buffer("c")}, {});
  s.begin_micro_batch(1);
  s.compute("in", {}, {s.buffer("a")}, {});
  const Recording r = s.take();
  const std::vector<double> costs{2, 9, 1, 5};
  Program program = program_in_order(r, {0, 1, 2, 3}, derive_dependencies(r.stages, r.buffers.size()));
  const SimulatedRun ahead = simulate(program, costs);
  EXPECT_DOUBLE_EQ(ahead.makespan_ns, 12);
  EXPECT_DOUBLE_EQ(ahead.start_ns[3], 2);
  EXPECT_DOUBLE_EQ(ahead.exposed_ns, 4);
  program.runs_ahead = false;
  EXPECT_DOUBLE_EQ(simulate(program, costs).makespan_ns, 17);
}

TEST(Search, TurnsHideAllWhereSegmentsAreLongerThanCollectives) {
  const Recording r = layers(2, 8);
  const std::vector<double> costs = costs_of(r, 11, 13, 37, 20);
  const SimulatedRun run = simulate(search_program(r, costs), costs);
  // Only the last collective has nothing left to hide under.
  EXPECT_LE(run.exposed_ns, 21);
}

TEST(Search, NeverLosesToTheCandidatesAndIsSound) {
  std::mt19937 rng(1);
  for (int i = 0; i < 40; ++i) {
    const Recording r = layers(2 + i % 3, 4);
    std::vector<double> costs;
    for (size_t s = 0; s < r.stages.size(); ++s) costs.push_back(1.0 + static_cast<double>(rng() % 100));
    const Program found = search_program(r, costs);
    ASSERT_TRUE(validate(found).empty());
    EXPECT_EQ(hash(found), hash(search_program(r, costs)));  // deterministic
    const double best = simulate(found, costs).makespan_ns;
    for (double skew : {0.0, 0.5, 1.5, 3.0, 8.0}) {
      EXPECT_LE(best, simulate(overlapped_program(r, skew), costs).makespan_ns) << "skew " << skew;
    }
    EXPECT_LE(best, simulate(sequential_program(r), costs).makespan_ns);
  }
}

}  // namespace
}  // namespace duet
