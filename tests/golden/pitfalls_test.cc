// Bugs that overlapping engines have shipped, and the test here that would have caught each.
// (O) tests/overlap, (X) tests/exec, (C) tests/comm, (E) tests/engine, (G) the other files of
// tests/golden; no letter: below.
//
//  1 ranks decide on local facts         (E) Ranks.SettingsThatDifferAreNamedOnEveryRank,
//                                        TheSmallestCacheCountsForAll; a step's cut travels with it
//  2 idle ranks, fewer requests than     RandomSteps (1 to 3 rows on 4 ranks), (G) TinyStepsOverlapToo
//    ranks
//  3 a half that padding made empty      cannot happen: nothing is padded; check_batch refuses empty
//                                        parts, (E) ABadBatchIsRefusedAndCostsNothing
//  4 an empty half among full peers      RandomSteps; ranks without a token: SkewedRouter
//  5 forward modes differ across ranks   cannot happen: the form is in the batch, per span
//  6 rounding moves counts over a        (O) Splitter.ThresholdsActAtTheirEdge, (E) StepBuilder.
//    threshold after the vote            EachThresholdActsAtItsEdge; one rank decides, nothing rounds
//  7 two flags for one switch            tests/cli Overlap.EveryNameSwitchesItOnAndOff
//  8 a model class silently not wired    (G) OverlappedStepsAreCounted, CollectivesAloneAreOnTheCommLane
//  9 knobs that do nothing               (E) StepBuilder.*Edge*, ImbalanceDecides…, tests/cli
//                                        Options.EveryFlagReachesTheEngine
// 10 offsets in mixed batches            (G) MixedPrefillAndDecodeSteps, RandomSteps
// 11 a cut in the decode rows            the same
// 12 a per-token field that is not cut   static_assert on StepBatch in model/batch.cc; RandomSteps
// 13 cuts inside a sequence              (G) EverySplitPositionOfFortyTokens
// 14 continuation of a cut prefill       the same
// 15 lengths computed anew per half      cannot happen: no step-wide lengths, spans carry their own
// 16 masks, block rows of a cut request  (G) EverySplitPositionOfFortyTokens (scattered blocks)
// 17 padded against unpadded counts      cannot happen: no padding; odd sizes on 2, 4, 8 ranks in (G)
// 18 padding computed from another half  the same
// 19 padded rows reach experts           (E) BytesAreThoseOfTheRealRowsAndCollectivesAreEqualInNumber
// 20 merge order, residual, norms        (G) GoldenLogits.MatchInEveryCut with 2 and 3 micro-batches
// 21 scale factors once                  the same (v3-tiny: 2.5), tests/kernels Gate
// 22 state flipped by an overlapped step OverlappedFirstOrSequentialFirst, RandomSteps (alternate)
// 23 expert counts, first_k, pruned      (G) GoldenLogits on every checkpoint, path and rank count
// 24 caches shared by both halves        RandomSteps; (O) Validator.ObjectsToAliasedBuffers
// 25 events that depend on the peer      MostOfTheNetworkIsHiddenInVirtualTime, (X) TheOtherMicroBatch…
// 26 waits on stale or absent events     cannot happen: events are derived; (O) Validator.ObjectsTo…,
//                                        (X) RunsEveryStageOnceAfterItsDependencies (50 repeats)
// 27 buffers freed or reused too early   buffers live as long as the model; NothingOfAnEarlierStepIsRead
// 28 one workspace for both halves       rows are disjoint (model/buffers.h); RandomSteps
// 29 collectives from two streams        one comm lane; CollectivesAloneAreOnTheCommLane, program hash,
//                                        (C) Failures.DifferentCollectivesAreNoticed
// 30 host waits inside communication     cannot happen: counts are exchanged on the comm lane itself
// 31 stages on the wrong lane            CollectivesAloneAreOnTheCommLane
// 32 a throw leaves the peer parked      (X) AThrowAtAnyStage…, (E) AFailureAtAnyCollectiveEndsTheStep…
// 33 first use allocates under overlap   (E) NoStepTakesStagingMemory, OverlappedFirstOrSequentialFirst
// 34 unequal sections of the halves      CollectivesAloneAreOnTheCommLane (equal stages per part)
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "base/json_text.h"
#include "comm/thread_group.h"
#include "golden/harness.h"
#include "load/checkpoint.h"
#include "load/safetensors.h"
#include "model/model.h"
#include "overlap/schedule.h"

namespace duet {
namespace {

RankOptions options_for(const std::string& model, int ranks, ExpertPath path) {
  RankOptions options = golden_options(model, ranks, path);
  options.max_batched_tokens = options.max_logits_rows = 128;
  options.max_model_len = 64;
  options.block_size = 3;
  options.kv_cache_bytes = int64_t{512} << 10;
  return options;
}

// A float32 copy of a model in which `change(name, values)` has had its way with every tensor.
class ChangedCheckpoint {
 public:
  ChangedCheckpoint(const std::string& model,
                    const std::function<void(const std::string&, std::span<float>)>& change) {
    std::string pattern = (std::filesystem::temp_directory_path() / "duet-pitfalls-XXXXXX").string();
    dir_ = mkdtemp(pattern.data());
    std::filesystem::copy(golden_dir(model) + "/config.json", dir_ / "config.json");
    const Checkpoint original = Checkpoint::open(golden_dir(model));
    std::vector<std::vector<float>> values;
    std::vector<SafetensorsTensor> tensors;
    for (const TensorInfo& t : original.tensors()) {
      std::vector<float>& copy = values.emplace_back(t.bytes / dtype_bytes(*t.dtype));
      convert_to_f32(t.data, *t.dtype, copy.data(), copy.size());
      change(t.name, copy);
      tensors.push_back({{t.name, DType::kF32, t.shape}, copy.data()});
    }
    write_safetensors((dir_ / "model.safetensors").string(), tensors);
  }
  ~ChangedCheckpoint() {
    std::error_code ignored;
    std::filesystem::remove_all(dir_, ignored);
  }
  ChangedCheckpoint(const ChangedCheckpoint&) = delete;
  ChangedCheckpoint& operator=(const ChangedCheckpoint&) = delete;
  std::string dir() const { return dir_.string(); }

 private:
  std::filesystem::path dir_;
};

// ---- random steps -------------------------------------------------------------------------------

// Prompt tokens are computed in the expanded form, generated ones in the absorbed form.
struct Request {
  std::vector<int32_t> tokens;
  int64_t prompt = 0;
  int64_t done = 0;
  std::vector<int32_t> blocks;
};

void add_rows(StepBatch& batch, const Request& request, int64_t count) {
  const int64_t table = static_cast<int64_t>(batch.block_tables.size());
  batch.block_tables.insert(batch.block_tables.end(), request.blocks.begin(), request.blocks.end());
  const auto span = [&](int64_t from, int64_t to, AttentionForm form) {
    if (from >= to) return;
    batch.spans.push_back(
        {batch.rows(), to - from, from, form, table, static_cast<int64_t>(request.blocks.size())});
    batch.token_ids.insert(batch.token_ids.end(), request.tokens.begin() + from, request.tokens.begin() + to);
  };
  const int64_t from = request.done, to = from + count, border = std::clamp(request.prompt, from, to);
  span(from, border, AttentionForm::kExpanded);
  span(border, to, AttentionForm::kAbsorbed);
}

std::vector<Request> random_requests(std::mt19937& rng, int64_t max_tokens, int64_t kv_blocks,
                                     int block_size) {
  std::vector<int32_t> free_blocks(static_cast<size_t>(kv_blocks));
  for (size_t b = 0; b < free_blocks.size(); ++b) free_blocks[b] = static_cast<int32_t>(b);
  std::shuffle(free_blocks.begin(), free_blocks.end(), rng);
  std::vector<Request> requests(1 + rng() % 4);
  for (Request& r : requests) {
    const int64_t length = 1 + static_cast<int64_t>(rng() % static_cast<unsigned>(max_tokens));
    r.tokens = random_tokens(length, 256, static_cast<unsigned>(rng()));
    r.prompt = 1 + static_cast<int64_t>(rng() % static_cast<unsigned>(length));
    for (int64_t b = 0; b * block_size < length; ++b) {
      r.blocks.push_back(free_blocks.back());
      free_blocks.pop_back();
    }
  }
  return requests;
}

// Runs all requests to their ends in random pieces, cuts and schedules; every token's logits.
Logits run_randomly(RankGroup& group, std::vector<Request> requests, std::mt19937& rng) {
  Logits logits(requests.size());
  const int64_t vocab = group.info().config.vocab_size;
  while (true) {
    StepBatch batch;
    std::vector<size_t> owner;
    for (size_t i = 0; i < requests.size(); ++i) {
      Request& r = requests[i];
      const int64_t left = static_cast<int64_t>(r.tokens.size()) - r.done;
      if (left == 0) continue;
      int64_t count = static_cast<int64_t>(rng() % static_cast<unsigned>(left + 1));
      if (rng() % 3 == 0) count = 1;
      if (i + 1 == requests.size() && batch.rows() == 0) count = std::max<int64_t>(count, 1);
      if (count == 0) continue;
      add_rows(batch, r, count);
      r.done += count;
      owner.insert(owner.end(), static_cast<size_t>(count), i);
    }
    const int64_t rows = batch.rows();
    if (rows == 0) {
      if (std::all_of(requests.begin(), requests.end(),
                      [](const Request& r) { return r.done == static_cast<int64_t>(r.tokens.size()); }))
        return logits;
      continue;
    }
    for (int64_t row = 0; row < rows; ++row) batch.logits_rows.push_back(static_cast<int32_t>(row));
    std::set<int64_t> borders{0, rows};
    for (unsigned cuts = rng() % 3; cuts > 0; --cuts)
      borders.insert(static_cast<int64_t>(rng() % static_cast<unsigned>(rows)));
    batch.borders.assign(borders.begin(), borders.end());
    batch.overlap = rng() % 4 != 0;  // also overlapped programs of one part, sequential ones of many
    const StepResult result = group.run(batch);
    for (int64_t row = 0; row < rows; ++row) {
      const float* values = result.logits.data() + row * vocab;
      std::vector<float>& out = logits[owner[static_cast<size_t>(row)]];
      out.insert(out.end(), values, values + vocab);
    }
  }
}

Logits run_at_once(RankGroup& group, const std::vector<Request>& requests) {
  StepBatch batch;
  for (const Request& r : requests) add_rows(batch, r, static_cast<int64_t>(r.tokens.size()));
  for (int64_t row = 0; row < batch.rows(); ++row) batch.logits_rows.push_back(static_cast<int32_t>(row));
  batch.borders = {0, batch.rows()};
  const StepResult result = group.run(batch);
  Logits logits;
  const float* at = result.logits.data();
  for (const Request& r : requests) {
    const float* end = at + static_cast<int64_t>(r.tokens.size()) * group.info().config.vocab_size;
    logits.emplace_back(at, end);
    at = end;
  }
  return logits;
}

using Case = std::tuple<const char*, int, ExpertPath>;
class Pitfalls : public testing::TestWithParam<Case> {
 protected:
  std::string model() const { return std::get<0>(GetParam()); }
  int ranks() const { return std::get<1>(GetParam()); }
  ExpertPath path() const { return std::get<2>(GetParam()); }
};

TEST_P(Pitfalls, RandomSteps) {
  const auto group = RankGroup::start(options_for(golden_dir(model()), ranks(), path()));
  std::mt19937 rng(static_cast<unsigned>(ranks()) * 2 + (path() == ExpertPath::kAllToAll));
  // The schedule is all families' alone: one of them tries it often, the others their own stages.
  const int rounds = model() == "v3-tiny" ? 60 : 8;
  for (int round = 0; round < rounds; ++round) {
    const int64_t longest = round % 3 == 0 ? 3 : 30;
    const std::vector<Request> requests =
        random_requests(rng, longest, group->info().kv_blocks, group->info().block_size);
    const Logits expected = run_at_once(*group, requests);
    ASSERT_TRUE(same_bits(expected, run_randomly(*group, requests, rng))) << "round " << round;
  }
}

TEST_P(Pitfalls, OverlappedFirstOrSequentialFirst) {
  const std::vector<std::vector<int32_t>> prompts{random_tokens(21, 256, 5), random_tokens(8, 256, 6)};
  Cut overlapped;
  overlapped.micro_batches = 3;
  overlapped.overlap = true;
  const auto cold = RankGroup::start(options_for(golden_dir(model()), ranks(), path()));
  const Logits first_on = run_prompts(*cold, prompts, overlapped);
  const auto other = RankGroup::start(options_for(golden_dir(model()), ranks(), path()));
  const Logits first_off = run_prompts(*other, prompts, {});
  EXPECT_TRUE(same_bits(first_on, first_off));
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(same_bits(first_off, run_prompts(*other, prompts, overlapped)));
    ASSERT_TRUE(same_bits(first_off, run_prompts(*other, prompts, {})));
  }
}

// ---- poison -------------------------------------------------------------------------------------

TEST_P(Pitfalls, NothingOfAnEarlierStepIsRead) {
  // A token whose embedding is NaN fills every buffer and the whole cache with NaN; whatever a later
  // step read of them without writing it first would come out as NaN.
  constexpr int32_t kPoison = 255;
  const ChangedCheckpoint checkpoint(model(), [](const std::string& name, std::span<float> values) {
    if (name == "model.embed_tokens.weight")  // [vocab, 64] in every one of them
      std::fill(values.begin() + kPoison * 64, values.begin() + (kPoison + 1) * 64, NAN);
  });
  RankOptions options = options_for(checkpoint.dir(), ranks(), path());
  const auto group = RankGroup::start(options);
  const std::vector<std::vector<int32_t>> prompts{random_tokens(19, 255, 8), random_tokens(11, 255, 9)};
  Cut on;
  on.micro_batches = 2;
  on.overlap = true;
  const Logits clean = run_prompts(*group, prompts, {});
  for (size_t i = 0; i < clean[0].size(); ++i) {
    // Its own logit is NaN where the head is the embedding.
    ASSERT_TRUE(i % 256 == kPoison || std::isfinite(clean[0][i]));
  }
  // As many full-length sequences as the cache holds, in full steps.
  const int64_t per_sequence = (64 + 2) / 3;
  const std::vector<std::vector<int32_t>> poison(static_cast<size_t>(group->info().kv_blocks / per_sequence),
                                                 std::vector<int32_t>(64, kPoison));
  ASSERT_GE(poison.size(), 4u);
  Cut full;
  full.max_rows = 128;
  Cut full_on = on;
  full_on.max_rows = 128;
  for (const Cut& dirty : {full, full_on}) {
    const Logits poisoned = run_prompts(*group, poison, dirty);
    ASSERT_TRUE(std::isnan(poisoned[0][0]));
    ASSERT_TRUE(same_bits(clean, run_prompts(*group, prompts, on)));
    run_prompts(*group, poison, dirty);
    ASSERT_TRUE(same_bits(clean, run_prompts(*group, prompts, {})));
  }
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
  std::string name = std::get<0>(info.param);
  std::replace(name.begin(), name.end(), '-', '_');
  return name + (std::get<2>(info.param) == ExpertPath::kAllToAll ? "_all_to_all_r" : "_all_reduce_r") +
         std::to_string(std::get<1>(info.param));
}
constexpr ExpertPath kPaths[] = {ExpertPath::kAllReduce, ExpertPath::kAllToAll};
INSTANTIATE_TEST_SUITE_P(Families, Pitfalls,
                         testing::Combine(testing::ValuesIn(kFamilies), testing::Values(2),
                                          testing::ValuesIn(kPaths)),
                         case_name);
INSTANTIATE_TEST_SUITE_P(MoreRanks, Pitfalls,
                         testing::Combine(testing::Values("v3-tiny"), testing::Values(4),
                                          testing::ValuesIn(kPaths)),
                         case_name);

// ---- routing ------------------------------------------------------------------------------------

TEST(SkewedRouter, HotExpertsIdleExpertsAndIdleRanks) {
  // v3-tiny: 16 experts in 4 groups, 2 groups and 4 experts chosen. A large correction bias decides
  // the choice without entering the weights.
  const std::vector<std::pair<const char*, std::vector<int>>> favourites{
      {"one hot expert", {5}},
      {"all on the first of four ranks", {0, 1, 2, 3}},
      {"all on the last of four ranks", {12, 13, 14, 15}},
      {"half of the ranks idle", {0, 1, 2, 3, 4, 5, 6, 7}},
      {"one expert per rank", {3, 7, 11, 15}},
  };
  const std::vector<std::vector<int32_t>> prompts{random_tokens(23, 256, 31), random_tokens(2, 256, 32)};
  Cut on;
  on.micro_batches = 3;
  on.overlap = true;
  for (const auto& [what, experts] : favourites) {
    SCOPED_TRACE(what);
    const std::vector<int>& liked = experts;
    const ChangedCheckpoint checkpoint("v3-tiny", [&](const std::string& name, std::span<float> values) {
      if (!name.ends_with("e_score_correction_bias")) return;
      for (int e : liked) values[static_cast<size_t>(e)] += 50.0F;
    });
    Logits alone;
    for (int ranks : {1, 2, 4}) {
      for (ExpertPath path : {ExpertPath::kAllReduce, ExpertPath::kAllToAll}) {
        const auto group = RankGroup::start(options_for(checkpoint.dir(), ranks, path));
        const Logits off = run_prompts(*group, prompts, {});
        ASSERT_TRUE(same_bits(off, run_prompts(*group, prompts, on))) << ranks << " ranks";
        if (alone.empty()) alone = off;
        for (size_t i = 0; i < off.size(); ++i)
          EXPECT_LE(relative_error(off[i], alone[i]), 2e-5) << ranks << " ranks";  // float32, as in (G)
      }
    }
  }
}

// Who routes badly sees it in the trace: how many (row, expert) pairs each rank's experts got.
TEST(SkewedRouter, IsShownInTheTrace) {
  const ChangedCheckpoint checkpoint("v3-tiny", [](const std::string& name, std::span<float> values) {
    if (!name.ends_with("e_score_correction_bias")) return;
    for (size_t e : {0, 1, 2, 3}) values[e] += 50.0F;  // the experts of the first of four ranks
  });
  RankOptions options = options_for(checkpoint.dir(), 4, ExpertPath::kAllToAll);
  options.trace = true;
  const auto group = RankGroup::start(options);
  Cut on;
  on.micro_batches = 2;
  on.overlap = true;
  run_prompts(*group, {random_tokens(24, 256, 33)}, on);
  const std::string path = checkpoint.dir() + "/trace.json";
  group->write_trace(path);
  const nlohmann::json trace = read_json(std::ifstream(path));
  std::map<int, int64_t> pairs;  // by rank
  int slices = 0;
  for (const auto& event : trace["traceEvents"]) {
    if (event["ph"] != "X" || event["name"] != "experts") continue;
    pairs[event["pid"]] += event["args"]["expert_rows"].get<int64_t>();
    ++slices;
  }
  EXPECT_GT(slices, 0);
  EXPECT_GE(pairs[0], 24 * 4);  // four experts of a row, at least one layer with all rows
  EXPECT_EQ(pairs[1], 0);
  EXPECT_EQ(pairs[2], 0);
  EXPECT_EQ(pairs[3], 0);
}

// ---- the recorded programs ----------------------------------------------------------------------

// What the model states for `micro_batches` parts, on two ranks.
Recording record_model(const std::string& name, ExpertPath path, int micro_batches) {
  Recording recording;
  run_ranks(2, DType::kF32, [&](int rank, Communicator& comm) {
    const auto weights =
        checkpoint_weights(std::make_shared<const Checkpoint>(Checkpoint::open(golden_dir(name))));
    ThreadPool pool(1, {});
    ModelSetup setup;
    setup.config = load_config(golden_dir(name));
    setup.weights = weights.get();
    setup.comm = &comm;
    setup.pool = &pool;
    setup.expert_path = path;
    setup.limits = {16, 16, setup.config.vocab_size, 16, 8, 4, micro_batches};
    const auto model = make_model(setup);
    Stages stages;
    for (int m = 0; m < micro_batches; ++m) {
      stages.begin_micro_batch(m);
      model->record(stages);
    }
    if (rank == 0) recording = stages.take();
  });
  return recording;
}

const std::map<ExpertPath, std::set<std::string>> kCollectives{
    {ExpertPath::kAllReduce, {"attn_reduce", "mlp_reduce", "best_gather", "logits_gather"}},
    {ExpertPath::kAllToAll,
     {"all_gather", "reduce_scatter", "dispatch", "combine", "head_gather", "best_gather", "logits_gather"}}};

TEST(RecordedPrograms, CollectivesAloneAreOnTheCommLane) {
  for (const char* name : {"v3-tiny", "v2-tiny", "v2lite-tiny"}) {
    for (const auto& [path, collectives] : kCollectives) {
      const Recording r = record_model(name, path, 3);
      std::set<std::string> seen;
      for (const Stage& stage : r.stages) {
        EXPECT_EQ(stage.lane == Lane::kComm, collectives.count(stage.kind) == 1) << stage.kind;
        if (stage.lane == Lane::kComm) seen.insert(stage.kind);
      }
      EXPECT_EQ(seen, collectives) << name;
      // Every part has the same stages in the same order, dense and sparse layers alike.
      ASSERT_EQ(r.stages.size() % 3, 0u);
      const size_t n = r.stages.size() / 3;
      for (size_t s = 0; s < r.stages.size(); ++s) {
        EXPECT_EQ(r.stages[s].kind, r.stages[s % n].kind);
        EXPECT_EQ(r.stages[s].layer, r.stages[s % n].layer);
        EXPECT_EQ(r.stages[s].micro_batch, static_cast<int>(s / n));
      }
    }
  }
}

// Time of a program whose stages all take 1 tick, both lanes strictly in order.
int64_t virtual_ticks(const Program& p) {
  std::vector<int64_t> end(p.stages.size(), -1);
  std::array<size_t, kLanes> at{};
  std::array<int64_t, kLanes> free{};
  while (at[0] < p.order[0].size() || at[1] < p.order[1].size()) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      if (at[lane] == p.order[lane].size()) continue;
      const size_t s = static_cast<size_t>(p.order[lane][at[lane]]);
      int64_t start = free[lane];
      bool ready = true;
      for (int w : p.waits[s]) {  // of its own lane too, where computing runs ahead
        ready = ready && end[static_cast<size_t>(w)] >= 0;
        start = std::max(start, end[static_cast<size_t>(w)]);
      }
      if (!ready) continue;
      end[s] = free[lane] = start + 1;
      ++at[lane];
    }
  }
  return std::max(free[0], free[1]);
}

TEST(RecordedPrograms, MostOfTheNetworkIsHiddenInVirtualTime) {
  for (const auto& [path, collectives] : kCollectives) {
    for (int parts : {2, 3}) {
      const Recording r = record_model("v3-tiny", path, parts);
      const int64_t sequential = virtual_ticks(sequential_program(r));
      const Program program = overlapped_program(r);
      ASSERT_EQ(sequential, static_cast<int64_t>(r.stages.size()));
      const auto shorter = static_cast<double>(std::min(program.order[0].size(), program.order[1].size()));
      const double hidden = static_cast<double>(sequential - virtual_ticks(program)) / shorter;
      // Three layers: beginning and end weigh a lot. An event that waits for the peer gives 0.
      EXPECT_GT(hidden, 0.6) << parts << " parts";
    }
  }
}

}  // namespace
}  // namespace duet
