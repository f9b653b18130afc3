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
// The bounds of buffers that lie side by side are not checked.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

// Pages that nobody touches take no memory, so the end of a mapping may stay empty.
constexpr size_t kMappingBytes = size_t{64} << 20;

struct Mapping {
  Mapping() {
    void* at = mmap(nullptr, kMappingBytes + kHugeAlign, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return;
    whole = at;
    const auto address = reinterpret_cast<uintptr_t>(at);
    begin = static_cast<std::byte*>(at) + ((address + kHugeAlign - 1) / kHugeAlign * kHugeAlign - address);
    madvise(begin, kMappingBytes, MADV_HUGEPAGE);
  }
  ~Mapping() {
    if (whole) munmap(whole, kMappingBytes + kHugeAlign);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  void* whole = nullptr;
  std::byte* begin = nullptr;
  size_t used = 0;
};

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
  if (!mapping_) std::free(data_);
}

AlignedBuffer::AlignedBuffer(AlignedBuffer&& o) noexcept
    : data_(std::exchange(o.data_, nullptr)),
      size_(std::exchange(o.size_, 0)),
      mapping_(std::move(o.mapping_)) {}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& o) noexcept {
  std::swap(data_, o.data_);
  std::swap(size_, o.size_);
  std::swap(mapping_, o.mapping_);
  return *this;
}

AlignedBuffer AlignedBuffer::side_by_side(size_t bytes) {
  constexpr size_t kAlign = 64;
  static thread_local std::weak_ptr<Mapping> current;
  const size_t padded = (bytes + kAlign - 1) / kAlign * kAlign;
  if (kSanitized || bytes == 0 || bytes >= kHugeBytes) return AlignedBuffer(bytes);
  std::shared_ptr<Mapping> mapping = current.lock();
  if (!mapping || mapping->used + padded > kMappingBytes) {
    mapping = std::make_shared<Mapping>();
    if (!mapping->begin) return AlignedBuffer(bytes);
    current = mapping;
  }
  AlignedBuffer buffer;
  buffer.data_ = mapping->begin + mapping->used;
  buffer.size_ = bytes;
  mapping->used += padded;
  buffer.mapping_ = std::move(mapping);
  return buffer;
}

}  // namespace duet
