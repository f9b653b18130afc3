// Rank objects with what a RankGroup never gives them: options that differ from rank to rank, and
// transports that count or fail. Ranks that disagree or fail must say so on every rank, and never
// leave one waiting.
#include "engine/rank.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <stdexcept>
#include <thread>

#include "base/error.h"
#include "comm/thread_group.h"
#include "load/checkpoint.h"
#include "load/shard.h"

namespace duet {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr int64_t kRows = 48;

RankOptions tiny_options(int ranks, ExpertPath path) {
  RankOptions o;
  o.model = DUET_FIXTURES "/golden/v3-tiny";
  o.ranks = ranks;
  o.threads_per_rank = 1;
  o.expert_path = path;
  o.wire = DType::kF32;
  o.max_batched_tokens = kRows;
  o.max_logits_rows = kRows;
  o.max_model_len = kRows;
  o.block_size = 4;
  o.kv_cache_bytes = int64_t{256} << 10;
  o.max_micro_batches = 3;
  return o;
}

using Wrap = std::function<std::unique_ptr<Transport>(int, std::unique_ptr<Transport>)>;

// Starts one Rank per thread and runs `body` on each; returns each rank's error ("" for none).
std::vector<std::string> with_ranks(const std::vector<RankOptions>& options,
                                    const std::function<void(Rank&)>& body, const Wrap& wrap = {}) {
  const size_t n = options.size();
  auto transports = ThreadGroup::create(static_cast<int>(n));
  std::vector<std::string> errors(n);
  std::vector<std::jthread> threads;
  for (size_t r = 0; r < n; ++r) {
    threads.emplace_back([&, r] {
      try {
        const RankOptions& o = options[r];
        const ModelConfig config = load_config(o.model);
        const auto weights =
            checkpoint_weights(std::make_shared<const Checkpoint>(Checkpoint::open(o.model)));
        Rank rank(o, config, *weights, plan_memory(o, config), o.max_model_len, {}, {}, 1,
                  [&] {
                    return wrap ? wrap(static_cast<int>(r), std::move(transports[r]))
                                : std::move(transports[r]);
                  },
                  {});
        body(rank);
      } catch (const std::exception& e) {
        errors[r] = e.what();
      }
    });
  }
  threads.clear();
  return errors;
}

// One prompt of `rows` tokens, cut at `borders`; every row's logits are wanted.
StepBatch one_prompt(int64_t rows, const std::vector<int64_t>& borders, bool overlap) {
  StepBatch batch;
  std::mt19937 rng(7);
  for (int64_t i = 0; i < rows; ++i) {
    batch.token_ids.push_back(static_cast<int32_t>(rng() % 256));
    batch.logits_rows.push_back(static_cast<int32_t>(i));
  }
  const int32_t blocks = static_cast<int32_t>((rows + 3) / 4);
  for (int32_t b = 0; b < blocks; ++b) batch.block_tables.push_back(blocks - 1 - b);
  batch.spans = {{0, rows, 0, AttentionForm::kExpanded, 0, blocks}};
  batch.borders = {0};
  batch.borders.insert(batch.borders.end(), borders.begin(), borders.end());
  batch.borders.push_back(rows);
  batch.overlap = overlap;
  return batch;
}

// Passes calls on and counts them; fails at call number `fail_at` (from `armed` on).
struct Wire {
  int64_t calls = 0;
  int64_t bytes = 0;
  bool armed = false;
  int64_t fail_at = -1;
};
class WiredTransport final : public Transport {
 public:
  WiredTransport(std::unique_ptr<Transport> inner, Wire* wire) : inner_(std::move(inner)), wire_(wire) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  const char* name() const override { return inner_->name(); }
  void exchange(std::span<const ConstBytes> send, std::span<const Bytes> recv) override {
    count(send);
    inner_->exchange(send, recv);
  }
  void exchange_up_to(std::span<const ConstBytes> send, std::span<const Bytes> recv,
                      std::span<size_t> received) override {
    count(send);
    inner_->exchange_up_to(send, recv, received);
  }
  void barrier() override {
    count({});
    inner_->barrier();
  }
  void abort(const std::string& reason) noexcept override { inner_->abort(reason); }

 private:
  void count(std::span<const ConstBytes> send) {
    if (wire_->armed && wire_->calls == wire_->fail_at) throw std::runtime_error("the cable is cut");
    ++wire_->calls;
    for (size_t r = 0; r < send.size(); ++r)
      if (static_cast<int>(r) != rank()) wire_->bytes += static_cast<int64_t>(send[r].size());
  }
  std::unique_ptr<Transport> inner_;
  Wire* wire_;
};

Wrap wired(std::vector<Wire>& wires) {
  return [&wires](int r, std::unique_ptr<Transport> inner) -> std::unique_ptr<Transport> {
    return std::make_unique<WiredTransport>(std::move(inner), &wires[static_cast<size_t>(r)]);
  };
}

TEST(Ranks, SettingsThatDifferAreNamedOnEveryRank) {
  struct Variation {
    const char* said;
    std::function<void(RankOptions&)> change;
  };
  const std::vector<Variation> variations{
      {"micro_batches", [](RankOptions& o) { o.max_micro_batches = 2; }},
      {"skew", [](RankOptions& o) { o.skew = 0.5; }},
      {"expert_path", [](RankOptions& o) { o.expert_path = ExpertPath::kAllToAll; }},
      {"enable_expert_parallel", [](RankOptions& o) { o.expert_parallel = true; }},
      {"comm_dtype", [](RankOptions& o) { o.wire = DType::kBf16; }},
      {"dtype", [](RankOptions& o) { o.dtype = ComputeDtype::kBfloat16; }},
      {"max_num_batched_tokens", [](RankOptions& o) { o.max_batched_tokens = 32; }},
      {"logits rows", [](RankOptions& o) { o.max_logits_rows = 8; }},
      {"max_model_len", [](RankOptions& o) { o.max_model_len = 40; }},
      {"block_size", [](RankOptions& o) { o.block_size = 8; }},
      {"seed", [](RankOptions& o) { o.dummy_seed = 5; }},
      {"architectures", [](RankOptions& o) { o.model = DUET_FIXTURES "/golden/v2-tiny"; }},
  };
  for (const Variation& v : variations) {
    for (size_t odd : {size_t{0}, size_t{2}}) {
      std::vector<RankOptions> options(4, tiny_options(4, ExpertPath::kAllReduce));
      v.change(options[odd]);
      const auto errors = with_ranks(options, [](Rank&) { FAIL() << "ranks that differ work together"; });
      for (const std::string& error : errors)
        EXPECT_THAT(error, AllOf(HasSubstr(v.said), HasSubstr("the same flags"))) << v.said;
    }
  }
}

TEST(Ranks, TheSmallestCacheCountsForAll) {
  // Hosts with different free memory plan different caches; a block that one lacks must not be used.
  std::vector<RankOptions> options(2, tiny_options(2, ExpertPath::kAllReduce));
  options[1].kv_cache_bytes /= 2;
  const int64_t least = plan_memory(options[1], load_config(options[1].model)).kv_blocks;
  ASSERT_LT(least, plan_memory(options[0], load_config(options[0].model)).kv_blocks);
  EXPECT_THAT(with_ranks(options, [&](Rank& rank) { EXPECT_EQ(rank.kv_blocks(), least); }),
              testing::Each(""));
}

class RankPaths : public testing::TestWithParam<ExpertPath> {};

TEST_P(RankPaths, AFailureAtAnyCollectiveEndsTheStepEverywhere) {
  const std::vector<RankOptions> two(2, tiny_options(2, GetParam()));
  const StepBatch batch = one_prompt(7, {4}, true);
  std::vector<Wire> wires(2);
  int64_t in_step = 0;
  const auto fine = with_ranks(
      two,
      [&](Rank& rank) {
        const int64_t before = wires[static_cast<size_t>(rank.rank())].calls;
        rank.step(batch);
        if (rank.rank() == 1) in_step = wires[1].calls - before;
      },
      wired(wires));
  ASSERT_THAT(fine, testing::Each(""));
  ASSERT_GT(in_step, 2 * 2 * 3);
  for (int64_t at = 0; at < in_step; ++at) {
    wires.assign(2, {});
    const auto errors = with_ranks(
        two,
        [&](Rank& rank) {
          Wire& wire = wires[static_cast<size_t>(rank.rank())];
          if (rank.rank() == 1) {
            wire.fail_at = wire.calls + at;
            wire.armed = true;
          }
          rank.step(batch);
        },
        wired(wires));
    ASSERT_EQ(errors[1], "the cable is cut") << "collective " << at;
    ASSERT_THAT(errors[0], HasSubstr("rank 1")) << "collective " << at;
  }
}

// Σ over ranks of the bytes of one step: what the real rows need and nothing else, so a padded row
// can neither travel nor reach an expert. v3-tiny: 3 layers, one of them dense; f32 on the wire.
int64_t bytes_needed(const ModelConfig& c, ExpertPath path, int ranks, const StepBatch& batch) {
  const int64_t n = batch.rows(), logits = static_cast<int64_t>(batch.logits_rows.size());
  const int64_t row = c.hidden_size * 4, others = ranks - 1;
  int64_t gathers = 0;  // each ends with a byte from rank 0 to every other one
  for (const MicroBatch& part : cut_batch(batch, 16, ranks)) gathers += part.logits_rows.empty() ? 0 : 1;
  const int64_t head = logits * c.vocab_size * 4 * others / ranks + gathers * others;
  if (path == ExpertPath::kAllReduce) return c.num_hidden_layers * 2 * 2 * others * n * row + head;
  return (c.num_hidden_layers + 1) * 2 * others * n * row + logits * others * row + head;
}

TEST_P(RankPaths, BytesAreThoseOfTheRealRowsAndCollectivesAreEqualInNumber) {
  const int ranks = 4;
  const std::vector<RankOptions> options(static_cast<size_t>(ranks), tiny_options(ranks, GetParam()));
  const ModelConfig config = load_config(options[0].model);
  const std::vector<std::vector<int64_t>> cuts{{}, {1}, {20}, {40}, {3, 9}, {1, 2}};
  for (int64_t rows : {41, 5, 3}) {
    std::vector<int64_t> routed;  // all-to-all: bytes of dispatch and combine, by cut
    for (const std::vector<int64_t>& cut : cuts) {
      if (!cut.empty() && cut.back() >= rows) continue;
      const StepBatch batch = one_prompt(rows, cut, !cut.empty());
      std::vector<Wire> wires(static_cast<size_t>(ranks));
      std::vector<int64_t> calls(wires.size()), bytes(wires.size());
      const auto errors = with_ranks(
          options,
          [&](Rank& rank) {
            const size_t r = static_cast<size_t>(rank.rank());
            const Wire before = wires[r];
            rank.step(batch);
            calls[r] = wires[r].calls - before.calls;
            bytes[r] = wires[r].bytes - before.bytes;
          },
          wired(wires));
      ASSERT_THAT(errors, testing::Each(""));
      EXPECT_THAT(calls, testing::Each(calls[0])) << rows << " rows";
      int64_t total = 0;
      for (int64_t b : bytes) total += b;
      const int64_t needed = bytes_needed(config, GetParam(), ranks, batch);
      if (GetParam() == ExpertPath::kAllReduce) {
        EXPECT_EQ(total, needed) << rows << " rows, " << batch.micro_batches() << " micro-batches";
        continue;
      }
      const int64_t copy = 2 * config.hidden_size * 4 + config.num_experts_per_tok * 8;
      EXPECT_EQ((total - needed) % copy, 0) << "whole rows only";
      routed.push_back((total - needed) / copy);
      // Each row goes at most once to each other rank, in each of the two MoE layers.
      EXPECT_LE(routed.back(), 2 * rows * (ranks - 1));
      EXPECT_GE(routed.back(), 0);
    }
  }
}

TEST_P(RankPaths, NoStepTakesStagingMemory) {
  EXPECT_THAT(with_ranks(std::vector<RankOptions>(2, tiny_options(2, GetParam())),
                         [](Rank& rank) {
                           for (int i = 0; i < 40; ++i) {
                             const int64_t rows = i % 5 == 0 ? kRows : 1 + i % 7;
                             std::vector<int64_t> cut;
                             if (rows > 2 && i % 2 == 0) cut = {1, rows - 1};
                             rank.step(one_prompt(rows, cut, !cut.empty()));
                           }
                           EXPECT_EQ(rank.comm_stats().buffer_growths, 0);
                           EXPECT_GT(rank.comm_stats().total().calls, 40 * 10);
                         }),
              testing::Each(""));
}

INSTANTIATE_TEST_SUITE_P(Both, RankPaths, testing::Values(ExpertPath::kAllReduce, ExpertPath::kAllToAll),
                         [](const auto& path) {
                           return path.param == ExpertPath::kAllToAll ? "all_to_all" : "all_reduce";
                         });

TEST(RankGroup, ABadBatchIsRefusedAndCostsNothing) {
  const auto group = RankGroup::start(tiny_options(2, ExpertPath::kAllToAll));
  const StepBatch good = one_prompt(9, {4}, true);
  const StepResult before = group->run(good);
  const std::vector<float> logits(before.logits.begin(), before.logits.end());
  std::vector<StepBatch> bad(6, good);
  bad[0].token_ids[3] = 256;
  bad[1].block_tables[0] = 1 << 20;
  bad[2].borders = {0, 4, 4, 9};
  bad[3].spans[0].rows = 8;
  bad[4].logits_rows = {5, 4};
  bad[5].token_ids.clear();
  for (const StepBatch& batch : bad) {
    try {
      group->run(batch);
      FAIL() << "a bad batch ran";
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), HasSubstr("step batch"));
    }
    const StepResult after = group->run(good);
    ASSERT_EQ(std::memcmp(after.logits.data(), logits.data(), logits.size() * sizeof(float)), 0);
  }
}

}  // namespace
}  // namespace duet
