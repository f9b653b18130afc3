#include "tensor/arena.h"

#include <sys/mman.h>

#include <cstdlib>
#include <string>
#include <utility>

namespace duet {

namespace {
// From here on a mapping of its own with huge pages: fewer TLB misses on streamed weights.
constexpr size_t kHugeBytes = size_t{4} << 20;
constexpr size_t kHugeAlign = size_t{2} << 20;
}  // namespace

AlignedBuffer::AlignedBuffer(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  const size_t align = bytes >= kHugeBytes ? kHugeAlign : 64;
  const size_t padded = (bytes + align - 1) / align * align;
  data_ = static_cast<std::byte*>(std::aligned_alloc(align, padded));
  if (!data_) {
    throw Error(ErrorKind::kResourceExhausted,
                "cannot allocate " + std::to_string(bytes >> 20) + " MiB of memory");
  }
  if (align == kHugeAlign) madvise(data_, padded, MADV_HUGEPAGE);  // a hint; refusal is harmless
}

AlignedBuffer::~AlignedBuffer() {
  std::free(data_);
}

AlignedBuffer::AlignedBuffer(AlignedBuffer&& o) noexcept
    : data_(std::exchange(o.data_, nullptr)), size_(std::exchange(o.size_, 0)) {}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& o) noexcept {
  std::swap(data_, o.data_);
  std::swap(size_, o.size_);
  return *this;
}

}  // namespace duet
