#include "engine/block_manager.h"

#include "base/error.h"
#include "engine/prefix_cache.h"

namespace duet {

BlockManager::BlockManager(int64_t blocks, int block_size, PrefixCache* cache)
    : block_size_(block_size), cache_(cache) {
  DUET_CHECK(blocks >= 0 && block_size > 0);
  references_.assign(static_cast<size_t>(blocks), 0);
  const size_t head = static_cast<size_t>(blocks);
  next_.assign(head + 1, static_cast<int32_t>(head));
  previous_.assign(head + 1, static_cast<int32_t>(head));
  for (int64_t b = blocks; b-- > 0;) push_free(static_cast<int32_t>(b), true);
}

void BlockManager::push_free(int32_t block, bool front) {
  const int32_t head = static_cast<int32_t>(total_blocks());
  const int32_t before = front ? head : previous_[static_cast<size_t>(head)];
  const int32_t after = next_[static_cast<size_t>(before)];
  next_[static_cast<size_t>(before)] = previous_[static_cast<size_t>(after)] = block;
  previous_[static_cast<size_t>(block)] = before;
  next_[static_cast<size_t>(block)] = after;
  ++free_count_;
}

void BlockManager::unlink(int32_t block) {
  const int32_t before = previous_[static_cast<size_t>(block)], after = next_[static_cast<size_t>(block)];
  next_[static_cast<size_t>(before)] = after;
  previous_[static_cast<size_t>(after)] = before;
  --free_count_;
}

bool BlockManager::grow(std::vector<int32_t>& table, int64_t tokens) {
  const int64_t missing = blocks_for(tokens) - static_cast<int64_t>(table.size());
  if (missing > free_blocks()) return false;
  for (int64_t i = 0; i < missing; ++i) {
    const int32_t block = next_.back();
    DUET_CHECK(references(block) == 0);
    unlink(block);
    if (cache_) cache_->forget(block);
    references_[static_cast<size_t>(block)] = 1;
    table.push_back(block);
  }
  return true;
}

void BlockManager::release(std::vector<int32_t>& table) {
  // Last block first: the next to grow gets them in ascending order again, and the cache loses the end
  // of a prefix before its beginning, without which the end cannot be found.
  while (!table.empty()) {
    const int32_t block = table.back();
    table.pop_back();
    int& count = references_[static_cast<size_t>(block)];
    DUET_CHECK(count > 0);
    if (--count == 0) push_free(block, !(cache_ && cache_->holds(block)));
  }
}

void BlockManager::hold(int32_t block) {
  if (references_[static_cast<size_t>(block)]++ == 0) unlink(block);
}

}  // namespace duet
