#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <set>

namespace duet {
namespace {

Sequence make_sequence(int64_t id, int64_t prompt) {
  Sequence s;
  s.id = id;
  s.tokens.assign(static_cast<size_t>(prompt), 7);
  s.prompt_tokens = prompt;
  s.first_wanted = prompt - 1;
  return s;
}

TEST(BlockManager, GrowsAllOrNothingAndGivesBack) {
  BlockManager blocks(4, 8);
  std::vector<int32_t> a, b;
  EXPECT_EQ(blocks.blocks_for(0), 0);
  EXPECT_EQ(blocks.blocks_for(8), 1);
  EXPECT_EQ(blocks.blocks_for(9), 2);
  ASSERT_TRUE(blocks.grow(a, 9));
  EXPECT_EQ(a, (std::vector<int32_t>{0, 1}));
  ASSERT_TRUE(blocks.grow(a, 16));  // room in the second block
  EXPECT_EQ(a.size(), 2u);
  EXPECT_FALSE(blocks.grow(b, 17));
  EXPECT_TRUE(b.empty());
  EXPECT_EQ(blocks.free_blocks(), 2);
  ASSERT_TRUE(blocks.grow(b, 16));
  blocks.release(a);
  blocks.release(b);
  EXPECT_EQ(blocks.free_blocks(), 4);
}

TEST(BlockManager, SharedBlocksLiveUntilTheLastHolderLetsGo) {
  BlockManager blocks(3, 4);
  std::vector<int32_t> a;
  ASSERT_TRUE(blocks.grow(a, 8));
  std::vector<int32_t> b = a;
  for (const int32_t block : b) blocks.hold(block);
  EXPECT_EQ(blocks.references(a[0]), 2);
  blocks.release(a);
  EXPECT_EQ(blocks.free_blocks(), 1);
  ASSERT_TRUE(blocks.grow(b, 12));
  EXPECT_EQ(std::set<int32_t>(b.begin(), b.end()).size(), 3u);
  blocks.release(b);
  EXPECT_EQ(blocks.free_blocks(), 3);
}

TEST(Scheduler, RunningFirstThenWaitingWithinTheBudget) {
  BlockManager blocks(100, 4);
  Scheduler scheduler({10, 3, 0}, &blocks);
  std::deque<Sequence> s;
  for (int64_t id = 0; id < 4; ++id) scheduler.add(&s.emplace_back(make_sequence(id, 6)));
  auto pieces = scheduler.schedule();
  ASSERT_EQ(pieces.size(), 2u);
  EXPECT_EQ(pieces[0].sequence->id, 0);
  EXPECT_EQ(pieces[0].count, 6);
  EXPECT_EQ(pieces[1].sequence->id, 1);
  EXPECT_EQ(pieces[1].count, 4);  // a chunk: what the budget left
  scheduler.commit(pieces);
  s[0].append(1);
  pieces = scheduler.schedule();
  ASSERT_EQ(pieces.size(), 3u);  // the fourth waits: three may run
  EXPECT_EQ(pieces[0].count, 1);
  EXPECT_EQ(pieces[1].first, 4);
  EXPECT_EQ(pieces[1].count, 2);
  EXPECT_EQ(pieces[2].sequence->id, 2);
  EXPECT_EQ(scheduler.waiting(), 1);
  scheduler.commit(pieces);
  scheduler.finish(&s[1]);
  s[0].append(1);
  s[2].append(1);
  pieces = scheduler.schedule();
  ASSERT_EQ(pieces.size(), 3u);
  EXPECT_EQ(pieces[2].sequence->id, 3);
}

TEST(Scheduler, ChunksOfOneSequence) {
  BlockManager blocks(100, 4);
  Scheduler scheduler({10, 8, 3}, &blocks);
  Sequence a = make_sequence(0, 7), b = make_sequence(1, 2);
  scheduler.add(&a);
  scheduler.add(&b);
  auto pieces = scheduler.schedule();
  ASSERT_EQ(pieces.size(), 2u);
  EXPECT_EQ(pieces[0].count, 3);
  EXPECT_EQ(pieces[1].count, 2);
}

TEST(Scheduler, TheYoungestIsPreemptedAndComesBackFirst) {
  BlockManager blocks(4, 2);
  Scheduler scheduler({100, 8, 0}, &blocks);
  std::deque<Sequence> s;
  for (int64_t id = 0; id < 3; ++id) scheduler.add(&s.emplace_back(make_sequence(id, id < 2 ? 3 : 2)));
  auto pieces = scheduler.schedule();
  ASSERT_EQ(pieces.size(), 2u);  // all four blocks are taken
  scheduler.commit(pieces);
  s[0].append(5);
  s[1].append(5);
  pieces = scheduler.schedule();
  scheduler.commit(pieces);
  ASSERT_EQ(pieces.size(), 2u);
  s[0].append(5);  // five tokens: a third block
  s[1].append(5);
  pieces = scheduler.schedule();
  ASSERT_EQ(pieces.size(), 1u);
  EXPECT_EQ(pieces[0].sequence, &s[0]);
  EXPECT_EQ(scheduler.preemptions(), 1);
  EXPECT_EQ(s[1].computed, 0);
  EXPECT_TRUE(s[1].blocks.empty());
  EXPECT_EQ(s[1].tokens.size(), 5u);  // nothing lost
  scheduler.commit(pieces);
  scheduler.finish(&s[0]);
  pieces = scheduler.schedule();
  ASSERT_EQ(pieces.size(), 2u);
  EXPECT_EQ(pieces[0].sequence, &s[1]);  // before the one that never ran
  EXPECT_EQ(pieces[0].first, 0);
  EXPECT_EQ(pieces[0].count, 5);
  EXPECT_EQ(pieces[1].sequence, &s[2]);
}

// What a step may not do, whatever the stream of requests.
void check_step(const std::vector<ScheduledPiece>& pieces, const SchedulerOptions& options,
                const BlockManager& blocks) {
  int64_t tokens = 0;
  std::set<int64_t> seen;
  std::set<int32_t> used;
  for (const ScheduledPiece& piece : pieces) {
    ASSERT_GT(piece.count, 0);
    ASSERT_TRUE(seen.insert(piece.sequence->id).second) << "scheduled twice";
    ASSERT_EQ(piece.first, piece.sequence->computed);
    ASSERT_LE(piece.first + piece.count, piece.sequence->length());
    ASSERT_EQ(static_cast<int64_t>(piece.sequence->blocks.size()),
              blocks.blocks_for(piece.first + piece.count));
    if (options.max_tokens_per_sequence > 0) {
      ASSERT_LE(piece.count, options.max_tokens_per_sequence);
    }
    tokens += piece.count;
  }
  ASSERT_LE(tokens, options.max_num_batched_tokens);
  ASSERT_LE(static_cast<int64_t>(pieces.size()), options.max_num_seqs);
}

struct Stream {
  SchedulerOptions options;
  int64_t pool = 0;
  int block_size = 0;
  std::deque<Sequence> sequences;
  std::vector<int64_t> wanted;  // tokens to generate
};

Stream random_stream(std::mt19937& rng) {
  auto pick = [&](int64_t lo, int64_t hi) { return std::uniform_int_distribution<int64_t>(lo, hi)(rng); };
  Stream s;
  s.block_size = static_cast<int>(pick(1, 5));
  s.pool = pick(3, 24);
  s.options = {pick(1, 40), pick(1, 6), pick(0, 2) ? 0 : pick(1, 9)};
  const int64_t capacity = s.pool * s.block_size;
  for (int64_t id = 0, n = pick(1, 20); id < n; ++id) {
    const int64_t prompt = pick(1, std::max<int64_t>(1, capacity * 2 / 3));
    s.sequences.push_back(make_sequence(id, prompt));
    s.wanted.push_back(pick(1, capacity - prompt + 1));  // the last token is never computed
  }
  return s;
}

TEST(Scheduler, RandomStreamsLoseNothingAndLeakNothing) {
  std::mt19937 rng(20240611);
  int64_t preemptions = 0;
  for (int round = 0; round < 400; ++round) {
    Stream stream = random_stream(rng);
    BlockManager blocks(stream.pool, stream.block_size);
    Scheduler scheduler(stream.options, &blocks);
    // Half of the requests arrive while others run.
    size_t arrived = 0;
    std::vector<int64_t> first_scheduled;
    std::set<int64_t> started;
    size_t finished = 0;
    int64_t steps = 0;
    auto arrive = [&](size_t until) {
      for (; arrived < std::min(until, stream.sequences.size()); ++arrived)
        scheduler.add(&stream.sequences[arrived]);
    };
    arrive((stream.sequences.size() + 1) / 2);
    while (scheduler.has_work() || arrived < stream.sequences.size()) {
      if (steps % 3 == 2 || !scheduler.has_work()) arrive(arrived + 1);
      ASSERT_LT(++steps, 100000) << "no progress";
      const auto pieces = scheduler.schedule();
      check_step(pieces, stream.options, blocks);
      ASSERT_FALSE(pieces.empty());
      std::map<int32_t, int64_t> owner;
      int64_t held = 0;
      for (const Sequence& s : stream.sequences)
        for (const int32_t block : s.blocks) {
          ++held;
          ASSERT_TRUE(owner.emplace(block, s.id).second) << "block " << block << " held twice";
        }
      ASSERT_EQ(held + blocks.free_blocks(), blocks.total_blocks());
      scheduler.commit(pieces);
      for (const auto& piece : pieces) {
        Sequence& s = *piece.sequence;
        if (started.insert(s.id).second) first_scheduled.push_back(s.id);
        if (s.pending() > 0) continue;
        s.append(static_cast<int32_t>(s.generated()));
        if (s.generated() == stream.wanted[static_cast<size_t>(s.id)]) {
          scheduler.finish(&s);
          ++finished;
        }
      }
    }
    ASSERT_EQ(finished, stream.sequences.size());
    ASSERT_EQ(blocks.free_blocks(), blocks.total_blocks());
    ASSERT_TRUE(std::is_sorted(first_scheduled.begin(), first_scheduled.end()))
        << "not first come, first served";
    for (const Sequence& s : stream.sequences)
      for (int64_t g = 0; g < s.generated(); ++g)
        ASSERT_EQ(s.tokens[static_cast<size_t>(s.prompt_tokens + g)], g) << "a token lost or doubled";
    preemptions += scheduler.preemptions();
  }
  EXPECT_GT(preemptions, 100) << "the pools are too large to test anything";
}

TEST(Scheduler, ATwoPartPoolPreemptsTheRequesterItself) {
  // The youngest is also the one that needs a block: it steps back, the older goes on.
  BlockManager blocks(2, 2);
  Scheduler scheduler({100, 8, 0}, &blocks);
  Sequence a = make_sequence(0, 1), b = make_sequence(1, 2);
  scheduler.add(&a);
  scheduler.add(&b);
  scheduler.commit(scheduler.schedule());
  a.append(1);
  b.append(1);
  const auto pieces = scheduler.schedule();
  ASSERT_EQ(pieces.size(), 1u);
  EXPECT_EQ(pieces[0].sequence, &a);
  EXPECT_EQ(b.preemptions, 1);
  EXPECT_EQ(scheduler.waiting(), 1);
}

TEST(Scheduler, FitsCountsWholeBlocks) {
  BlockManager blocks(3, 4);
  const Scheduler scheduler({100, 8, 0}, &blocks);
  EXPECT_TRUE(scheduler.fits(12));
  EXPECT_FALSE(scheduler.fits(13));
}

}  // namespace
}  // namespace duet
