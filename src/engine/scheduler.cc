#include "engine/scheduler.h"

#include <algorithm>

#include "base/error.h"
#include "engine/prefix_cache.h"

namespace duet {

namespace {
constexpr int64_t kAnyRows = int64_t{1} << 60;  // no limit, with room to add
}

Scheduler::Scheduler(const SchedulerOptions& options, BlockManager* blocks)
    : options_(options), blocks_(blocks) {
  DUET_CHECK(options.max_num_batched_tokens > 0 && options.max_num_seqs > 0);
}

void Scheduler::add(Sequence* sequence) {
  DUET_CHECK(sequence->pending() > 0 && fits(sequence->length()));
  waiting_.push_back(sequence);
}

// A prompt whose every logit is wanted takes what the buffer holds, less a row for each sequence that
// comes after it: those decode, and want one.
int64_t Scheduler::tokens_for(const Sequence& sequence, const Budget& budget) const {
  int64_t count = std::min(sequence.pending(), budget.tokens);
  if (options_.max_tokens_per_sequence > 0) count = std::min(count, options_.max_tokens_per_sequence);
  const int64_t silent = std::max<int64_t>(sequence.first_wanted - sequence.computed, 0);
  const int64_t rows =
      budget.logits_rows > 0 ? std::max<int64_t>(budget.logits_rows - budget.reserved, 1) : 0;
  return std::min(count, silent + rows);
}

void Scheduler::take(Sequence* sequence, int64_t count, Budget& budget,
                     std::vector<ScheduledPiece>& pieces) const {
  pieces.push_back({sequence, sequence->computed, count});
  budget.tokens -= count;
  budget.logits_rows -=
      std::max<int64_t>(sequence->computed + count - std::max(sequence->computed, sequence->first_wanted), 0);
}

void Scheduler::drop_cache(Sequence* sequence) {
  blocks_->release(sequence->blocks);
  sequence->contents.clear();
  sequence->computed = 0;
}

void Scheduler::preempt(Sequence* sequence) {
  drop_cache(sequence);
  ++sequence->preemptions;
  ++preemptions_;
  waiting_.push_front(sequence);
}

// Blocks of the prefix cache that hold the sequence's first tokens, up to those whose logits are wanted.
void Scheduler::find_prefix(Sequence* sequence) {
  PrefixCache* cache = blocks_->cache();
  if (!cache || sequence->computed > 0) return;
  const int64_t size = blocks_->block_size();
  const int64_t most = std::min(sequence->first_wanted, sequence->length() - 1) / size;
  int64_t content = PrefixCache::kRoot;
  for (int64_t b = 0; b < most; ++b) {
    const auto tokens = std::span<const int32_t>(sequence->tokens)
                            .subspan(static_cast<size_t>(b * size), static_cast<size_t>(size));
    const int64_t prompt_rows = std::clamp<int64_t>(sequence->prompt_tokens - b * size, 0, size);
    const auto hit =
        prompt_rows == size ? cache->find_prompt(content, tokens) : cache->find(content, tokens, prompt_rows);
    if (!hit) break;
    content = hit->content;
    blocks_->hold(hit->block);
    sequence->blocks.push_back(hit->block);
    sequence->contents.push_back(content);
    sequence->computed += size;
  }
}

void Scheduler::publish(Sequence* sequence) {
  PrefixCache* cache = blocks_->cache();
  if (!cache) return;
  const int64_t size = blocks_->block_size();
  while (static_cast<int64_t>(sequence->contents.size() + 1) * size <= sequence->computed) {
    const int64_t b = static_cast<int64_t>(sequence->contents.size());
    const auto tokens = std::span<const int32_t>(sequence->tokens)
                            .subspan(static_cast<size_t>(b * size), static_cast<size_t>(size));
    const int64_t parent = b == 0 ? PrefixCache::kRoot : sequence->contents.back();
    sequence->contents.push_back(
        cache->publish(sequence->blocks[static_cast<size_t>(b)], parent, tokens,
                       std::clamp<int64_t>(sequence->prompt_tokens - b * size, 0, size)));
  }
}

bool Scheduler::admit(Sequence* sequence, Budget& budget, std::vector<ScheduledPiece>& pieces) {
  find_prefix(sequence);
  const int64_t found = sequence->computed;
  const int64_t count = tokens_for(*sequence, budget);
  if (count < 1 || !blocks_->grow(sequence->blocks, found + count)) {
    drop_cache(sequence);
    return false;
  }
  if (sequence->preemptions == 0) {
    sequence->cached = found;
    prefix_hits_ += found;
    if (blocks_->cache()) prefix_queries_ += sequence->length();
  }
  sequence->reached = std::max(sequence->reached, found);
  take(sequence, count, budget, pieces);
  return true;
}

std::vector<ScheduledPiece> Scheduler::schedule() {
  std::vector<ScheduledPiece> pieces;
  Budget budget{options_.max_num_batched_tokens,
                options_.max_logits_rows > 0 ? options_.max_logits_rows : kAnyRows, 0};
  bool preempted = false;

  for (size_t i = 0; i < running_.size() && budget.tokens > 0; ++i) {
    Sequence* sequence = running_[i];
    budget.reserved = running() - static_cast<int64_t>(i) - 1;
    const int64_t count = tokens_for(*sequence, budget);
    if (count < 1) continue;
    bool allocated = blocks_->grow(sequence->blocks, sequence->computed + count);
    // The youngest gives way. It has not been scheduled yet: it stands at or behind this one.
    while (!allocated && i < running_.size()) {
      Sequence* victim = running_.back();
      running_.pop_back();
      preempt(victim);
      preempted = true;
      if (victim != sequence) allocated = blocks_->grow(sequence->blocks, sequence->computed + count);
    }
    if (!allocated) break;
    take(sequence, count, budget, pieces);
  }

  // Nobody joins in a step that had to preempt: the blocks would be taken away again at once.
  budget.reserved = 0;
  while (!preempted && budget.tokens > 0 && !waiting_.empty() && running() < options_.max_num_seqs) {
    Sequence* sequence = waiting_.front();
    if (!admit(sequence, budget, pieces)) break;
    waiting_.pop_front();
    running_.push_back(sequence);
  }
  // The oldest fits the cache alone, so a step is never empty.
  DUET_CHECK(!pieces.empty() || !has_work());
  return pieces;
}

void Scheduler::commit(const std::vector<ScheduledPiece>& pieces) {
  for (const ScheduledPiece& piece : pieces) {
    DUET_CHECK(piece.first == piece.sequence->computed);
    piece.sequence->computed += piece.count;
    piece.sequence->reached = std::max(piece.sequence->reached, piece.sequence->computed);
    publish(piece.sequence);
  }
}

void Scheduler::finish(Sequence* sequence) {
  blocks_->release(sequence->blocks);
  std::erase(running_, sequence);
  std::erase(waiting_, sequence);
}

}  // namespace duet
