#include "engine/block_manager.h"

#include "base/error.h"

namespace duet {

BlockManager::BlockManager(int64_t blocks, int block_size) : block_size_(block_size) {
  DUET_CHECK(blocks >= 0 && block_size > 0);
  references_.assign(static_cast<size_t>(blocks), 0);
  free_.reserve(static_cast<size_t>(blocks));
  for (int64_t b = blocks; b-- > 0;) free_.push_back(static_cast<int32_t>(b));
}

bool BlockManager::grow(std::vector<int32_t>& table, int64_t tokens) {
  const int64_t missing = blocks_for(tokens) - static_cast<int64_t>(table.size());
  if (missing > free_blocks()) return false;
  for (int64_t i = 0; i < missing; ++i) {
    const int32_t block = free_.back();
    free_.pop_back();
    DUET_CHECK(references_[static_cast<size_t>(block)] == 0);
    references_[static_cast<size_t>(block)] = 1;
    table.push_back(block);
  }
  return true;
}

void BlockManager::release(std::vector<int32_t>& table) {
  // Last block first, so that the next to grow gets them in ascending order again.
  while (!table.empty()) {
    const int32_t block = table.back();
    table.pop_back();
    int& count = references_[static_cast<size_t>(block)];
    DUET_CHECK(count > 0);
    if (--count == 0) free_.push_back(block);
  }
}

std::vector<int32_t> BlockManager::share(const std::vector<int32_t>& table) {
  for (const int32_t block : table) {
    DUET_CHECK(references(block) > 0);
    ++references_[static_cast<size_t>(block)];
  }
  return table;
}

}  // namespace duet
