#include "tensor/arena.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace duet {
namespace {

TEST(AlignedBuffer, SideBySideKeepsItsBytesWhateverHappensToTheOthers) {
  std::vector<AlignedBuffer> buffers;
  const std::vector<size_t> sizes = {1, 64, 65, 100000, size_t{3} << 20, size_t{5} << 20};
  for (int round = 0; round < 12; ++round) {  // more than one mapping
    for (const size_t bytes : sizes) {
      AlignedBuffer& b = buffers.emplace_back(AlignedBuffer::side_by_side(bytes));
      ASSERT_EQ(b.size(), bytes);
      ASSERT_EQ(reinterpret_cast<uintptr_t>(b.data()) % 64, 0u);
      std::memset(b.data(), static_cast<int>(buffers.size()), bytes);
    }
  }
  // Every second one goes, some move.
  for (size_t i = 0; i < buffers.size(); i += 2) buffers[i] = AlignedBuffer();
  std::vector<AlignedBuffer> moved;
  for (AlignedBuffer& b : buffers) moved.push_back(std::move(b));
  buffers.clear();
  for (size_t i = 1; i < moved.size(); i += 2) {
    const auto want = static_cast<std::byte>(i + 1);
    for (size_t k = 0; k < moved[i].size(); k += 61) ASSERT_EQ(moved[i].data()[k], want) << i;
    ASSERT_EQ(moved[i].data()[moved[i].size() - 1], want);
  }
  EXPECT_EQ(AlignedBuffer::side_by_side(0).data(), nullptr);
}

}  // namespace
}  // namespace duet
