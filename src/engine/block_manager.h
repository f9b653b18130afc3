// The blocks of the paged KV cache: who holds which. Used by the scheduler alone; what free blocks may
// still contain is the prefix cache's business. Always holds: every block is either free or has as
// many holders as its reference count says; growing a table takes all the blocks it needs or none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace duet {

class PrefixCache;

class BlockManager {
 public:
  /// `cache` (may be null, else outlives this) is told of blocks that are taken for something new.
  BlockManager(int64_t blocks, int block_size, PrefixCache* cache = nullptr);

  int block_size() const { return block_size_; }
  int64_t total_blocks() const { return static_cast<int64_t>(references_.size()); }
  int64_t free_blocks() const { return free_count_; }
  /// Blocks that `tokens` tokens take.
  int64_t blocks_for(int64_t tokens) const { return (tokens + block_size_ - 1) / block_size_; }
  PrefixCache* cache() const { return cache_; }

  /// Appends blocks until `table` holds `tokens` tokens; false, and no change, when too few are free.
  bool grow(std::vector<int32_t>& table, int64_t tokens);
  /// Gives up every block of `table` and empties it; a block is free when its last holder let go.
  /// Free blocks that the cache knows are taken last, those unused for longest first.
  void release(std::vector<int32_t>& table);
  /// One more holder of a block, which may be free. Blocks with several holders are read-only.
  void hold(int32_t block);
  int references(int32_t block) const { return references_[static_cast<size_t>(block)]; }

 private:
  void push_free(int32_t block, bool front);
  void unlink(int32_t block);

  int block_size_;
  PrefixCache* cache_;
  std::vector<int> references_;
  // Free blocks as a ring of links, so that a hit can be taken out of the middle; the last entry is its
  // head. Blocks without known content are in front: the one freed last is still in a CPU's cache.
  std::vector<int32_t> next_, previous_;
  int64_t free_count_ = 0;
};

}  // namespace duet
