// What the two halves of the Communicator share (communicator.cc: set-up, gathers, bytes;
// communicator_rows.cc: reductions and row exchanges). Included by those two alone.
#pragma once

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/error.h"
#include "comm/communicator.h"

namespace duet {

// Slices of an all-reduce start at whole cache lines of bf16.
inline constexpr int64_t kSliceAlignElements = 32;

// Counts and times one collective from its first to its last line.
class Communicator::Call {
 public:
  Call(Communicator& comm, CollectiveKind kind) : comm_(comm), kind_(kind), start_ns_(now_ns()) {
    comm_.kind_ = kind;
    ++comm_.stats_.of(kind).calls;
  }
  ~Call() { comm_.stats_.of(kind_).time_ns += now_ns() - start_ns_; }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

 private:
  Communicator& comm_;
  CollectiveKind kind_;
  int64_t start_ns_;
};

namespace wire {

inline void copy_bytes(const void* from, void* to, size_t bytes) {
  if (bytes > 0 && from != to) std::memmove(to, from, bytes);
}

inline void copy_rows(ConstRows from, Rows to) {
  DUET_CHECK(from.rows == to.rows && from.cols == to.cols);
  for (int64_t r = 0; r < from.rows; ++r) {
    copy_bytes(from.row(r), to.row(r), static_cast<size_t>(from.cols) * sizeof(float));
  }
}

// Rows per piece when every rank's slice is worked on at once; equal on all ranks.
inline int64_t piece_rows(int64_t width, int ranks, int64_t piece_elements) {
  return std::max<int64_t>(1, piece_elements / std::max<int64_t>(1, width * ranks));
}

}  // namespace wire
}  // namespace duet
