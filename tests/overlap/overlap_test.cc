#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "overlap/schedule.h"
#include "overlap/splitter.h"
#include "overlap/validator.h"

namespace duet {
namespace {

// A model-like recording: random stages that read and write a handful of buffers per micro-batch,
// and KV rows that later micro-batches read.
Recording random_recording(std::mt19937& rng, int micro_batches, int layers) {
  Stages stages;
  const unsigned seed = rng();
  for (int m = 0; m < micro_batches; ++m) {
    stages.begin_micro_batch(m);
    std::mt19937 same(seed);  // every micro-batch has the same stages
    for (int l = 0; l < layers; ++l) {
      stages.begin_layer(l);
      const int count = 3 + static_cast<int>(same() % 6);
      for (int i = 0; i < count; ++i) {
        std::vector<BufferId> reads, writes{stages.buffer("w" + std::to_string(same() % 5))};
        for (unsigned r = same() % 3; r > 0; --r)
          reads.push_back(stages.buffer("w" + std::to_string(same() % 5)));
        if (i == 0) writes.push_back(stages.kv());
        if (i == 1) reads = stages.kv_so_far();
        if (same() % 3 == 0)
          stages.collective("c", reads, writes, {});
        else
          stages.compute("k", reads, writes, {});
      }
    }
  }
  return stages.take();
}

TEST(Schedule, EveryProgramIsSound) {
  std::mt19937 rng(1);
  for (int i = 0; i < 200; ++i) {
    const Recording r = random_recording(rng, 1 + i % 4, 1 + i % 5);
    const double skew = static_cast<double>(i % 9) * 0.5;
    EXPECT_EQ(validate(sequential_program(r)), std::vector<std::string>{});
    const Program p = overlapped_program(r, skew);
    EXPECT_EQ(validate(p), std::vector<std::string>{}) << to_string(p);
  }
}

TEST(Schedule, SequentialNeverOverlaps) {
  std::mt19937 rng(2);
  const Recording r = random_recording(rng, 2, 3);
  const Program p = sequential_program(r);
  // Every change of lane between neighbours of the logical order carries a wait.
  for (size_t s = 1; s < p.stages.size(); ++s) {
    if (p.stages[s].lane != p.stages[s - 1].lane) {
      ASSERT_EQ(p.waits[s].size(), 1u);
      EXPECT_EQ(p.waits[s][0], static_cast<int>(s) - 1);
    }
  }
}

TEST(Validator, ObjectsToEveryDroppedEvent) {
  std::mt19937 rng(3);
  for (int i = 0; i < 20; ++i) {
    const Recording r = random_recording(rng, 1 + i % 3, 3);
    const Program good = overlapped_program(r);
    for (size_t s = 0; s < good.waits.size(); ++s) {
      for (size_t w = 0; w < good.waits[s].size(); ++w) {
        Program bad = good;
        bad.waits[s].erase(bad.waits[s].begin() + static_cast<long>(w));
        EXPECT_FALSE(validate(bad).empty()) << "dropped " << stage_label(good.stages[s]);
      }
    }
  }
}

TEST(Validator, ObjectsToAliasedBuffers) {
  Stages stages;
  for (int m = 0; m < 2; ++m) {
    stages.begin_micro_batch(m);
    stages.compute("produce", {}, {stages.buffer("x")}, {});
    stages.collective("reduce", {stages.buffer("x")}, {stages.buffer("y")}, {});
    stages.compute("consume", {stages.buffer("y")}, {stages.buffer("x")}, {});
  }
  Program p = overlapped_program(stages.take());
  ASSERT_TRUE(validate(p).empty());
  for (Stage& stage : p.stages) {
    for (auto* list : {&stage.reads, &stage.writes}) {
      for (BufferId& b : *list) {
        if (p.buffers[b] == "x.b1")
          b = static_cast<BufferId>(std::find(p.buffers.begin(), p.buffers.end(), "x.b0") -
                                    p.buffers.begin());
      }
    }
  }
  EXPECT_FALSE(validate(p).empty());
}

TEST(Validator, ObjectsToDeadlockMissingAndDoubledStages) {
  std::mt19937 rng(4);
  const Program good = overlapped_program(random_recording(rng, 2, 6));
  Program bad = good;
  bad.order[0].pop_back();
  EXPECT_FALSE(validate(bad).empty());
  bad = good;
  bad.order[0].push_back(bad.order[0].front());
  EXPECT_FALSE(validate(bad).empty());
  bad = good;
  bad.waits[static_cast<size_t>(bad.order[0].front())].push_back(bad.order[1].back());
  bad.waits[static_cast<size_t>(bad.order[1].front())].push_back(bad.order[0].back());
  EXPECT_FALSE(validate(bad).empty());
  bad = good;
  bad.waits[0].push_back(static_cast<int>(bad.stages.size()));
  EXPECT_FALSE(validate(bad).empty());
}

TEST(Validator, ObjectsToASequentialProgramThatOverlaps) {
  Stages stages;
  stages.begin_micro_batch(0);
  stages.compute("route", {}, {stages.buffer("send"), stages.buffer("h")}, {});
  stages.collective("dispatch", {stages.buffer("send")}, {stages.buffer("received")}, {});
  stages.compute("shared", {stages.buffer("h")}, {stages.buffer("part")}, {});  // needs nothing of dispatch
  Program p = sequential_program(stages.take());
  ASSERT_TRUE(validate(p).empty());
  ASSERT_EQ(p.waits[2], std::vector<int>{1});
  p.waits[2].clear();
  EXPECT_FALSE(validate(p).empty());
  p.schedule = "overlapped";
  EXPECT_TRUE(validate(p).empty());
}

TEST(Validator, PlacesMayBeSharedOneAfterTheOther) {
  Stages stages;
  stages.begin_micro_batch(0);
  const BufferId a = stages.buffer("a"), b = stages.buffer("b"), c = stages.buffer("c"),
                 d = stages.buffer("d");
  stages.compute("first", {}, {a}, {});
  stages.collective("second", {a}, {b}, {});
  stages.compute("third", {b}, {c}, {});
  stages.collective("fourth", {c}, {d}, {});
  const Program good = overlapped_program(stages.take());
  const auto shared = [&](BufferId x, BufferId y) {
    Program p = good;
    p.place[y] = p.place[x];
    return validate(p).empty();
  };
  EXPECT_TRUE(shared(a, c));  // third comes after second, which is the last to read a
  EXPECT_TRUE(shared(b, d));
  EXPECT_FALSE(shared(a, b));  // one stage reads the one and writes the other
  EXPECT_FALSE(shared(b, c));
  Program p = good;
  p.kept = {a};
  p.place[c] = p.place[a];
  EXPECT_FALSE(validate(p).empty());  // later steps want a
}

TEST(Validator, CollectivesOfAllRanksMustMeet) {
  std::mt19937 rng(7);
  const std::string calls = collectives_in_order(overlapped_program(random_recording(rng, 2, 6)));
  EXPECT_TRUE(validate_meeting({calls, calls, calls}).empty());
  EXPECT_TRUE(validate_meeting({}).empty());
  const std::string fewer = calls.substr(0, calls.rfind('\n', calls.size() - 2) + 1);
  const std::vector<std::string> defects = validate_meeting({calls, calls, fewer});
  ASSERT_EQ(defects.size(), 1u);
  EXPECT_NE(defects[0].find("rank 2 calls nothing"), std::string::npos) << defects[0];
  EXPECT_EQ(validate_meeting({fewer, calls}).size(), 1u);
}

TEST(Program, HashSeesOrderWaitsAndStages) {
  std::mt19937 rng(5);
  const Recording r = random_recording(rng, 2, 6);
  const Program a = overlapped_program(r);
  EXPECT_EQ(hash(a), hash(overlapped_program(r)));
  Program b = a;
  std::swap(b.order[1].front(), b.order[1].back());
  EXPECT_NE(hash(a), hash(b));
  b = a;
  b.stages[0].kind += "x";
  EXPECT_NE(hash(a), hash(b));
  EXPECT_NE(hash(a), hash(sequential_program(r)));
}

TEST(Splitter, NoPartIsEmptyAndCostIsHalved) {
  std::mt19937 rng(6);
  for (int i = 0; i < 2000; ++i) {
    std::vector<SpanShape> spans;
    int64_t rows = 0;
    for (unsigned n = 1 + rng() % 12; n > 0; --n) {
      spans.push_back({static_cast<int64_t>(rng() % 3 == 0 ? 1 + rng() % 200 : 1),
                       static_cast<int64_t>(rng() % 4000),
                       {1.0, 0.001}});
      rows += spans.back().rows;
    }
    SplitOptions options;
    options.micro_batches = 1 + i % 4;
    options.imbalance = 0.0;
    const auto borders = split_rows(spans, options);
    ASSERT_EQ(borders.front(), 0);
    ASSERT_EQ(borders.back(), rows);
    ASSERT_EQ(static_cast<int64_t>(borders.size()) - 1, std::min<int64_t>(options.micro_batches, rows));
    for (size_t b = 1; b < borders.size(); ++b) ASSERT_LT(borders[b - 1], borders[b]);
  }
}

TEST(Splitter, AttentionCostMovesTheBorder) {
  // Two sequences of equal length, the second with a long context: by tokens the border lies between
  // them, by cost inside the second.
  const auto border = [](double key) {
    const std::vector<SpanShape> spans{{100, 0, {1.0, key}}, {100, 4000, {1.0, key}}};
    return split_rows(spans, {2, 0.1, {}})[1];
  };
  EXPECT_EQ(border(0.0), 100);
  EXPECT_GT(border(0.001), 110);
}

TEST(Splitter, ARowsOwnCostCounts) {
  // Decodes with a long context beside a prompt: a row of theirs costs as much as ten of the prompt's.
  const std::vector<SpanShape> spans{{10, 0, {10.0, 0.0}}, {100, 0, {1.0, 0.0}}};
  EXPECT_EQ(split_rows(spans, {2, 0.0, {}})[1], 10);
  EXPECT_EQ(split_rows(spans, {4, 0.0, {}}), (std::vector<int64_t>{0, 5, 10, 60, 110}));
}

TEST(Splitter, SharesSetTheParts) {
  const std::vector<SpanShape> spans{{100, 0, {}}};
  EXPECT_EQ(split_rows(spans, {3, 0.0, {1, 2, 1}}), (std::vector<int64_t>{0, 25, 75, 100}));
}

TEST(Splitter, ImbalanceActsAtItsEdge) {
  // Borders between sequences lie at 45 % and 100 %: off by 0.1 of a half.
  const std::vector<SpanShape> spans{{45, 0, {}}, {55, 0, {}}};
  EXPECT_EQ(split_rows(spans, {2, 0.1, {}})[1], 45);
  EXPECT_EQ(split_rows(spans, {2, 0.099, {}})[1], 50);
}

TEST(Splitter, ThresholdsActAtTheirEdge) {
  const SplitThresholds t{512, 32};
  EXPECT_FALSE(worth_splitting(511, true, t));
  EXPECT_TRUE(worth_splitting(512, true, t));
  EXPECT_FALSE(worth_splitting(31, false, t));
  EXPECT_TRUE(worth_splitting(32, false, t));
  EXPECT_FALSE(worth_splitting(1, true, {0, 0}));
}

}  // namespace
}  // namespace duet
