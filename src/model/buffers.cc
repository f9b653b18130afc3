#include "model/buffers.h"

#include <algorithm>

namespace duet {

BufferSizes::BufferSizes(const DecoderShapes& s, const BatchLimits& limits)
    : rows(limits.max_rows),
      // A micro-batch of n rows has at most ⌈n / ranks⌉ owned ones, each for at most all ranks.
      wide_rows(limits.max_rows + int64_t{limits.max_micro_batches} * s.ranks),
      head_rows(limits.max_logits_rows),
      hidden(s.hidden),
      q(s.attention.q),
      heads(s.attention.heads),
      top_k(s.top_k),
      vocab_local(s.vocab_rows.size()),
      vocab(s.vocab),
      ranks(s.ranks),
      group_borders(s.experts.size() + 1),
      micro_batches(limits.max_micro_batches),
      all_to_all(s.all_to_all),
      root(s.rank == 0) {}

int64_t BufferSizes::bytes() const {
  int64_t elements = rows * (3 * hidden + q + heads + 4 * top_k) + group_borders * micro_batches;
  elements += head_rows * (hidden + vocab_local + 2);
  if (root) elements += head_rows * (vocab + 2 * ranks + 2);
  if (all_to_all) elements += wide_rows * (2 * hidden + 2 * top_k) + rows * (2 * hidden + 2 * top_k);
  return elements * 4 + 32 * 64;  // every piece starts on its own 64-byte line
}

DecoderBuffers::DecoderBuffers(const DecoderShapes& shapes, const BatchLimits& limits)
    : n_(shapes, limits), ranks_(shapes.ranks), arena_(static_cast<size_t>(n_.bytes())) {
  const auto floats = [&](int64_t rows, int64_t cols) {
    return arena_.take<float>(static_cast<size_t>(rows * cols));
  };
  x_ = floats(n_.rows, n_.hidden);
  h_ = floats(n_.rows, n_.hidden);
  part_ = floats(n_.rows, n_.hidden);
  q_ = floats(n_.rows, n_.q);
  heads_ = floats(n_.rows, n_.heads);
  expert_weights_ = floats(n_.rows, n_.top_k);
  group_weights_ = floats(n_.rows, n_.top_k);
  expert_ids_ = arena_.take<int32_t>(static_cast<size_t>(n_.rows * n_.top_k));
  group_rows_ = arena_.take<int32_t>(static_cast<size_t>(n_.rows * n_.top_k));
  group_offsets_ = arena_.take<int32_t>(static_cast<size_t>(n_.group_borders * n_.micro_batches));
  head_in_ = floats(n_.head_rows, n_.hidden);
  head_part_ = floats(n_.head_rows, n_.vocab_local);
  best_part_ = floats(n_.head_rows, 2);
  if (n_.root) {
    logits_ = floats(n_.head_rows, n_.vocab);
    best_all_ = floats(n_.head_rows, 2 * n_.ranks);
    best_ = arena_.take<BestToken>(static_cast<size_t>(n_.head_rows));
  }
  if (n_.all_to_all) {
    send_ = floats(n_.wide_rows, n_.hidden);
    back_ = floats(n_.wide_rows, n_.hidden);
    received_ = floats(n_.rows, n_.hidden);
    result_ = floats(n_.rows, n_.hidden);
    send_choice_ = arena_.take<std::byte>(static_cast<size_t>(n_.wide_rows * choice_bytes(n_.top_k)));
    received_choice_ = arena_.take<std::byte>(static_cast<size_t>(n_.rows * choice_bytes(n_.top_k)));
  }
}

DecoderRows DecoderBuffers::rows_of(const MicroBatch& m, int index) const {
  const int64_t first = m.first_row, count = m.rows;
  const auto view = [&](float* base, int64_t cols) { return Rows(base + first * cols, count, cols); };
  DecoderRows r;
  r.x = view(x_, n_.hidden);
  r.h = view(h_, n_.hidden);
  r.part = view(part_, n_.hidden);
  r.q = view(q_, n_.q);
  r.heads = view(heads_, n_.heads);
  r.expert_ids = expert_ids_ + first * n_.top_k;
  r.expert_weights = expert_weights_ + first * n_.top_k;
  r.group_rows = group_rows_ + first * n_.top_k;
  r.group_weights = group_weights_ + first * n_.top_k;
  r.group_offsets = group_offsets_ + index * n_.group_borders;
  if (n_.all_to_all) {
    const int64_t wide_first = first + int64_t{index} * ranks_;
    r.send = Rows(send_ + wide_first * n_.hidden, count + ranks_, n_.hidden);
    r.back = Rows(back_ + wide_first * n_.hidden, count + ranks_, n_.hidden);
    r.received = view(received_, n_.hidden);
    r.result = view(result_, n_.hidden);
    r.send_choice = send_choice_ + wide_first * choice_bytes(n_.top_k);
    r.received_choice = received_choice_ + first * choice_bytes(n_.top_k);
  }
  const int64_t head_first = m.first_logits_row, head_count = static_cast<int64_t>(m.logits_rows.size());
  r.head_in = Rows(head_in_ + head_first * n_.hidden, head_count, n_.hidden);
  r.head_part = Rows(head_part_ + head_first * n_.vocab_local, head_count, n_.vocab_local);
  const auto best_count = std::ssize(m.best_rows);
  r.best_part = Rows(best_part_ + head_first * 2, best_count, 2);
  if (logits_) {
    r.logits = Rows(logits_ + head_first * n_.vocab, head_count, n_.vocab);
    r.best_all = Rows(best_all_ + head_first * 2 * ranks_, best_count, int64_t{2} * ranks_);
    r.best = best_ + head_first;
  }
  return r;
}

}  // namespace duet
