// Prefix caching: the index, the blocks behind it, and what the scheduler does with both.
#include "engine/prefix_cache.h"

#include <gtest/gtest.h>

#include <deque>
#include <random>

#include "engine/scheduler.h"

namespace duet {
namespace {

using Ids = std::vector<int32_t>;

TEST(PrefixCache, FindsExactlyWhatWasPublished) {
  PrefixCache cache(false);
  const int64_t a = cache.publish(5, PrefixCache::kRoot, Ids{1, 2}, 2);
  const int64_t b = cache.publish(7, a, Ids{3, 4}, 2);
  EXPECT_NE(a, b);
  ASSERT_TRUE(cache.find_prompt(PrefixCache::kRoot, Ids{1, 2}));
  EXPECT_EQ(cache.find_prompt(PrefixCache::kRoot, Ids{1, 2})->block, 5);
  EXPECT_EQ(cache.find_prompt(a, Ids{3, 4})->block, 7);
  EXPECT_FALSE(cache.find_prompt(PrefixCache::kRoot, Ids{3, 4}));  // behind another prefix
  EXPECT_FALSE(cache.find_prompt(b, Ids{1, 2}));
  EXPECT_FALSE(cache.find_prompt(PrefixCache::kRoot, Ids{1, 3}));
  // The same again in another block: the same content, which stays where it was.
  EXPECT_EQ(cache.publish(9, PrefixCache::kRoot, Ids{1, 2}, 2), a);
  EXPECT_FALSE(cache.holds(9));
  cache.forget(5);
  EXPECT_FALSE(cache.find_prompt(PrefixCache::kRoot, Ids{1, 2}));
  EXPECT_EQ(cache.size(), 1);
}

TEST(PrefixCache, WhatDecodingWroteIsAnotherContent) {
  PrefixCache any(false), prompt_only(true);
  for (PrefixCache* cache : {&any, &prompt_only}) {
    cache->publish(1, PrefixCache::kRoot, Ids{1, 2, 3}, 1);
    EXPECT_TRUE(cache->find(PrefixCache::kRoot, Ids{1, 2, 3}, 1));
    EXPECT_FALSE(cache->find(PrefixCache::kRoot, Ids{1, 2, 3}, 2));  // another border of prompt and answer
    EXPECT_EQ(cache->find_prompt(PrefixCache::kRoot, Ids{1, 2, 3}).has_value(), cache == &any);
    // Once it is there as prompt too, a prompt gets that.
    cache->publish(2, PrefixCache::kRoot, Ids{1, 2, 3}, 3);
    EXPECT_EQ(cache->find_prompt(PrefixCache::kRoot, Ids{1, 2, 3})->block, 2);
    cache->forget(2);
    cache->forget(1);
    EXPECT_FALSE(cache->find_prompt(PrefixCache::kRoot, Ids{1, 2, 3}));
  }
}

Sequence prompt(int64_t id, Ids tokens) {
  Sequence s;
  s.id = id;
  s.tokens = std::move(tokens);
  s.prompt_tokens = s.length();
  s.first_wanted = s.length() - 1;
  return s;
}

TEST(PrefixCache, ASequenceStartsBehindWhatIsKnown) {
  PrefixCache cache(true);
  BlockManager blocks(8, 2, &cache);
  Scheduler scheduler({100, 8, 0}, &blocks);
  Sequence a = prompt(0, {1, 2, 3, 4, 5}), b = prompt(1, {1, 2, 3, 4, 6}), c = prompt(2, {1, 2, 3, 4});
  scheduler.add(&a);
  scheduler.add(&b);
  auto pieces = scheduler.schedule();
  ASSERT_EQ(pieces.size(), 2u);
  EXPECT_EQ(pieces[1].first, 0);  // the step that fills the blocks has not run yet
  scheduler.commit(pieces);
  scheduler.finish(&a);
  scheduler.finish(&b);
  EXPECT_EQ(blocks.free_blocks(), 8);
  Sequence d = prompt(3, {1, 2, 3, 4, 7});
  scheduler.add(&d);
  pieces = scheduler.schedule();
  EXPECT_EQ(pieces[0].first, 4);
  EXPECT_EQ(pieces[0].count, 1);
  EXPECT_EQ(d.cached, 4);
  scheduler.commit(pieces);
  // The last token is always computed: its logits are wanted.
  scheduler.add(&c);
  d.append(8);
  pieces = scheduler.schedule();
  ASSERT_EQ(pieces.size(), 2u);
  EXPECT_EQ(pieces[1].first, 2);
  EXPECT_EQ(c.blocks[0], d.blocks[0]);  // shared with one that still runs
  EXPECT_EQ(blocks.references(c.blocks[0]), 2);
  EXPECT_EQ(scheduler.prefix_hits(), 6);
  EXPECT_EQ(scheduler.prefix_queries(), 5 + 5 + 5 + 4);
  scheduler.commit(pieces);
  scheduler.finish(&c);
  scheduler.finish(&d);
  EXPECT_EQ(blocks.free_blocks(), 8);
}

TEST(PrefixCache, ThePrefixUnusedForLongestGoesFirstAndItsEndBeforeItsBeginning) {
  PrefixCache cache(true);
  BlockManager blocks(4, 1, &cache);
  Scheduler scheduler({100, 8, 0}, &blocks);
  const auto run = [&](Ids tokens) {
    Sequence s = prompt(0, std::move(tokens));
    scheduler.add(&s);
    const auto pieces = scheduler.schedule();
    scheduler.commit(pieces);
    const int64_t cached = s.cached;
    scheduler.finish(&s);
    return cached;
  };
  EXPECT_EQ(run({1, 2}), 0);
  EXPECT_EQ(run({3, 4}), 0);
  EXPECT_EQ(run({1, 2}), 1);  // used again, so {3, 4} is the older one now
  EXPECT_EQ(run({5}), 0);     // takes the block of 4, the older prefix's end
  EXPECT_EQ(run({3, 9}), 1);
  EXPECT_EQ(run({1, 2}), 1);
}

// Random traffic over few prefixes and a small cache: nothing leaks, no block has two contents, shared
// blocks hold what each holder's tokens say.
TEST(PrefixCache, RandomTrafficNeverMixesContents) {
  std::mt19937 random(3);
  const auto pick = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  PrefixCache cache(false);
  constexpr int kSize = 3;
  BlockManager blocks(24, kSize, &cache);
  Scheduler scheduler({50, 6, 0}, &blocks);
  std::deque<Sequence> all;
  std::vector<Sequence*> live;
  std::vector<Ids> holds(24);  // what a step wrote into each block: the tokens up to its end
  int64_t hits = 0;
  for (int step = 0; step < 3000; ++step) {
    if (live.size() < 8 && pick(2) == 0) {
      Ids tokens;
      for (int i = 1 + pick(20); i > 0; --i) tokens.push_back(pick(2));
      live.push_back(&all.emplace_back(prompt(step, tokens)));
      scheduler.add(live.back());
    }
    if (!scheduler.has_work()) continue;
    const auto pieces = scheduler.schedule();
    for (const ScheduledPiece& piece : pieces) {
      const Ids& tokens = piece.sequence->tokens;
      for (int64_t t = 0; t < piece.first + piece.count; ++t) {
        Ids& block = holds[static_cast<size_t>(piece.sequence->blocks[static_cast<size_t>(t / kSize)])];
        const Ids prefix(tokens.begin(), tokens.begin() + t + 1);
        if (t >= piece.first)
          block = prefix;
        else
          ASSERT_TRUE(block.size() > static_cast<size_t>(t) &&
                      std::equal(prefix.begin(), prefix.end(), block.begin()))
              << "step " << step << ", token " << t;
      }
    }
    scheduler.commit(pieces);
    for (const ScheduledPiece& piece : pieces) {
      Sequence* s = piece.sequence;
      if (s->pending() > 0) continue;
      if (s->length() > 40 || pick(20) == 0) {
        hits += s->cached;
        scheduler.finish(s);
        std::erase(live, s);
      } else {
        s->append(pick(2));
      }
    }
    if (pick(20) == 0 && !live.empty()) {
      Sequence* s = live[static_cast<size_t>(pick(static_cast<int>(live.size())))];
      scheduler.finish(s);
      std::erase(live, s);
    }
  }
  for (Sequence* s : live) scheduler.finish(s);
  EXPECT_EQ(blocks.free_blocks(), 24);
  EXPECT_GT(hits, 100);
  EXPECT_GT(scheduler.preemptions(), 10);
}

TEST(Scheduler, LogitsOfAWholePromptComeWithinTheBuffer) {
  BlockManager blocks(100, 4);
  Scheduler scheduler({100, 4, 0, 4}, &blocks);
  Sequence whole = prompt(0, Ids(10, 1)), other = prompt(1, Ids(6, 2));
  whole.first_wanted = 0;
  scheduler.add(&other);
  scheduler.add(&whole);
  int64_t seen = 0;
  for (int step = 0; step < 20 && seen < 10; ++step) {
    const auto pieces = scheduler.schedule();
    int64_t rows = 0;
    bool decoded = false;
    for (const auto& piece : pieces) {
      rows += std::max<int64_t>(
          piece.first + piece.count - std::max(piece.first, piece.sequence->first_wanted), 0);
      decoded |= piece.sequence == &other;
    }
    EXPECT_TRUE(decoded);  // a prompt that wants much does not starve its neighbour
    EXPECT_LE(rows, 4);
    scheduler.commit(pieces);
    seen = whole.computed;
    whole.first_wanted = std::min<int64_t>(whole.computed, 9);
    if (other.pending() == 0) other.append(3);
  }
  EXPECT_EQ(seen, 10);
}

}  // namespace
}  // namespace duet
