// Memory that is taken once and handed out in 64-byte aligned pieces. AlignedBuffer owns;
// Arena is a bump allocator over one AlignedBuffer that can be wound back (kernel scratch).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/error.h"

namespace duet {

/// Owned, 64-byte aligned bytes, uninitialised; large ones ask for huge pages. Move-only.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  /// Throws Error(kResourceExhausted) with the size when the system refuses.
  explicit AlignedBuffer(size_t bytes);
  /// For what lives as long as a model: buffers too small for huge pages of their own lie side by side, in
  /// the order in which a thread makes them, in mappings that have them. The last buffer of a mapping gives
  /// it back.
  static AlignedBuffer side_by_side(size_t bytes);
  ~AlignedBuffer();
  AlignedBuffer(AlignedBuffer&& o) noexcept;
  AlignedBuffer& operator=(AlignedBuffer&& o) noexcept;

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::shared_ptr<const void> mapping_;  // where not null, what data_ is part of
};

/// Bump allocator; running out is a planning bug (DUET_CHECK), not an input error.
class Arena {
 public:
  Arena() = default;
  explicit Arena(size_t bytes) : buffer_(bytes) {}

  template <typename T>
  T* take(size_t count) {
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    DUET_CHECK(used_ + bytes <= buffer_.size());
    T* p = reinterpret_cast<T*>(buffer_.data() + used_);
    used_ += bytes;
    return p;
  }
  size_t used() const { return used_; }
  size_t capacity() const { return buffer_.size(); }
  void rewind(size_t used) { used_ = used; }

 private:
  AlignedBuffer buffer_;
  size_t used_ = 0;
};

/// Winds an arena back at scope exit.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), used_(arena.used()) {}
  ~ArenaScope() { arena_.rewind(used_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  size_t used_;
};

}  // namespace duet
