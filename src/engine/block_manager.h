// The blocks of the paged KV cache: who holds which. Used by the scheduler alone; knows nothing of
// what the blocks contain. Always holds: every block is either free or has as many holders as its
// reference count says; growing a table takes all the blocks it needs or none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace duet {

class BlockManager {
 public:
  BlockManager(int64_t blocks, int block_size);

  int block_size() const { return block_size_; }
  int64_t total_blocks() const { return static_cast<int64_t>(references_.size()); }
  int64_t free_blocks() const { return static_cast<int64_t>(free_.size()); }
  /// Blocks that `tokens` tokens take.
  int64_t blocks_for(int64_t tokens) const { return (tokens + block_size_ - 1) / block_size_; }

  /// Appends blocks until `table` holds `tokens` tokens; false, and no change, when too few are free.
  bool grow(std::vector<int32_t>& table, int64_t tokens);
  /// Gives up every block of `table` and empties it; a block is free when its last holder let go.
  void release(std::vector<int32_t>& table);
  /// A second table over the same blocks, read-only from now on for both holders.
  std::vector<int32_t> share(const std::vector<int32_t>& table);
  int references(int32_t block) const { return references_[static_cast<size_t>(block)]; }

 private:
  int block_size_;
  std::vector<int> references_;
  std::vector<int32_t> free_;  // a stack: the block freed last is still in a cache
};

}  // namespace duet
