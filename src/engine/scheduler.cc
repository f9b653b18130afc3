#include "engine/scheduler.h"

#include <algorithm>

#include "base/error.h"

namespace duet {

Scheduler::Scheduler(const SchedulerOptions& options, BlockManager* blocks)
    : options_(options), blocks_(blocks) {
  DUET_CHECK(options.max_num_batched_tokens > 0 && options.max_num_seqs > 0);
}

void Scheduler::add(Sequence* sequence) {
  DUET_CHECK(sequence->pending() > 0 && fits(sequence->length()));
  waiting_.push_back(sequence);
}

int64_t Scheduler::tokens_for(const Sequence& sequence, int64_t budget) const {
  int64_t count = std::min(sequence.pending(), budget);
  if (options_.max_tokens_per_sequence > 0) count = std::min(count, options_.max_tokens_per_sequence);
  return count;
}

void Scheduler::preempt(Sequence* sequence) {
  blocks_->release(sequence->blocks);
  sequence->computed = 0;
  ++sequence->preemptions;
  ++preemptions_;
  waiting_.push_front(sequence);
}

std::vector<ScheduledPiece> Scheduler::schedule() {
  std::vector<ScheduledPiece> pieces;
  int64_t budget = options_.max_num_batched_tokens;
  bool preempted = false;

  for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
    Sequence* sequence = running_[i];
    const int64_t count = tokens_for(*sequence, budget);
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
    pieces.push_back({sequence, sequence->computed, count});
    budget -= count;
  }

  // Nobody joins in a step that had to preempt: the blocks would be taken away again at once.
  while (!preempted && budget > 0 && !waiting_.empty() && running() < options_.max_num_seqs) {
    Sequence* sequence = waiting_.front();
    const int64_t count = tokens_for(*sequence, budget);
    if (!blocks_->grow(sequence->blocks, sequence->computed + count)) break;
    waiting_.pop_front();
    running_.push_back(sequence);
    pieces.push_back({sequence, sequence->computed, count});
    budget -= count;
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
  }
}

void Scheduler::finish(Sequence* sequence) {
  blocks_->release(sequence->blocks);
  std::erase(running_, sequence);
  std::erase(waiting_, sequence);
}

}  // namespace duet
