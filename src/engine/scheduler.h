// Scheduler: which tokens of which sequences the next step computes. Continuous batching with
// chunked prefill by vLLM's default policy: what runs goes on first, in order of arrival, then
// waiting sequences join, first come first served, within a budget of tokens. When blocks run out
// the youngest running sequence is preempted: it loses its cache and is computed again later.
// A sequence that is admitted starts behind what the prefix cache (of the block manager, if it has
// one) knows of its tokens; blocks are published once the step that filled them has run.
// Always holds: every sequence added is waiting, running or finished; the oldest one progresses.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "engine/block_manager.h"
#include "engine/request.h"

namespace duet {

struct SchedulerOptions {
  int64_t max_num_batched_tokens = 2048;  // per step
  int64_t max_num_seqs = 256;             // running at once
  int64_t max_tokens_per_sequence = 0;    // > 0: of one sequence in one step (chunks of `duet logits`)
  int64_t max_logits_rows = 0;  // > 0: wanted in one step, at most; not below max_num_seqs or the tokens
};

class Scheduler {
 public:
  Scheduler(const SchedulerOptions& options, BlockManager* blocks);

  /// Last in the queue. The sequence must fit the cache alone, or schedule() cannot keep its promise
  /// (see fits); it must outlive the scheduler or finish first.
  void add(Sequence* sequence);
  /// Whether `tokens` tokens of one sequence fit the cache when it is alone.
  bool fits(int64_t tokens) const { return blocks_->blocks_for(tokens) <= blocks_->total_blocks(); }

  bool has_work() const { return !running_.empty() || !waiting_.empty(); }
  /// The pieces of the next step, in order of arrival among those that ran before, then the newly
  /// admitted; never empty while has_work(). Their blocks are allocated.
  std::vector<ScheduledPiece> schedule();
  /// The step has been computed: advances the sequences.
  void commit(const std::vector<ScheduledPiece>& pieces);
  /// Takes a sequence out, wherever it is, and frees its blocks.
  void finish(Sequence* sequence);

  int64_t running() const { return static_cast<int64_t>(running_.size()); }
  int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t preemptions() const { return preemptions_; }
  /// Tokens of newly admitted sequences that were looked up in the prefix cache, and found there.
  int64_t prefix_queries() const { return prefix_queries_; }
  int64_t prefix_hits() const { return prefix_hits_; }

 private:
  /// What a step can still take; `reserved` rows of logits are for the running sequences yet to come.
  struct Budget {
    int64_t tokens = 0, logits_rows = 0, reserved = 0;
  };
  int64_t tokens_for(const Sequence& sequence, const Budget& budget) const;
  void take(Sequence* sequence, int64_t count, Budget& budget, std::vector<ScheduledPiece>& pieces) const;
  bool admit(Sequence* sequence, Budget& budget, std::vector<ScheduledPiece>& pieces);
  void find_prefix(Sequence* sequence);
  void publish(Sequence* sequence);
  void drop_cache(Sequence* sequence);
  void preempt(Sequence* sequence);

  SchedulerOptions options_;
  BlockManager* blocks_;
  std::vector<Sequence*> running_;
  std::deque<Sequence*> waiting_;
  int64_t preemptions_ = 0, prefix_queries_ = 0, prefix_hits_ = 0;
};

}  // namespace duet
