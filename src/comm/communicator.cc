#include "comm/communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "comm/collective_call.h"
#include "comm/wire.h"

namespace duet {
namespace {

// A step's description rides along with its length when it is this short: one message, not two.
constexpr size_t kBroadcastInline = 504;
// Column-sharded float32 rows are gathered in pieces of about 1 MiB.
constexpr int64_t kGatherPieceFloats = int64_t{1} << 18;

ConstBytes bytes_of(const float* data, int64_t count) {
  return {reinterpret_cast<const std::byte*>(data), static_cast<size_t>(count) * sizeof(float)};
}

struct StagingBytes {
  size_t send = 0;
  size_t recv = 0;
};

StagingBytes staging_for(int ranks, DType wire, int64_t max_elements, int64_t max_all_to_all_elements) {
  if (ranks == 1) return {};
  // A row wider than a piece would not be cut; no model has rows of 2 Mi elements.
  const int64_t reduce = std::min(max_elements, Communicator::kPieceElements) + kSliceAlignElements * ranks;
  const auto elements = static_cast<size_t>(std::max(reduce, max_all_to_all_elements));
  const size_t bytes = elements * dtype_bytes(wire);
  return {bytes, std::max(bytes, static_cast<size_t>(kGatherPieceFloats) * sizeof(float))};
}

}  // namespace

const char* to_string(CollectiveKind kind) {
  switch (kind) {
    case CollectiveKind::kAllReduce: return "all_reduce";
    case CollectiveKind::kReduceScatter: return "reduce_scatter";
    case CollectiveKind::kAllGather: return "all_gather";
    case CollectiveKind::kAllToAll: return "all_to_all";
    case CollectiveKind::kGather: return "gather";
    case CollectiveKind::kBroadcast: return "broadcast";
    case CollectiveKind::kBarrier: return "barrier";
  }
  return "unknown";
}

CommStats::PerKind CommStats::total() const {
  PerKind sum;
  for (const PerKind& k : kinds) {
    sum.calls += k.calls;
    sum.bytes_sent += k.bytes_sent;
    sum.time_ns += k.time_ns;
  }
  return sum;
}

DType parse_wire_dtype(const std::string& name) {
  if (name == "bf16" || name == "bfloat16") return DType::kBf16;
  if (name == "f32" || name == "float32") return DType::kF32;
  if (name == "int8") {
    throw Error(ErrorKind::kUnsupported, "communication type int8 is not supported yet; use bf16 or f32");
  }
  throw Error(ErrorKind::kInvalidArgument,
              fmt::format("unknown communication type '{}'; use bf16 or f32", name));
}

Communicator::Communicator(std::unique_ptr<Transport> transport, DType wire)
    : transport_(std::move(transport)),
      wire_(wire),
      rank_(transport_->rank()),
      size_(transport_->size()),
      wire_bytes_(dtype_bytes(wire)),
      send_(static_cast<size_t>(size_)),
      recv_(static_cast<size_t>(size_)),
      received_(static_cast<size_t>(size_)),
      sources_(static_cast<size_t>(size_)) {
  if (wire != DType::kF32 && wire != DType::kBf16) {
    throw Error(ErrorKind::kUnsupported,
                fmt::format("communication type {} is not supported; use bfloat16 or "
                            "float32",
                            to_string(wire)));
  }
}

Communicator::~Communicator() = default;
Communicator::Communicator(Communicator&&) noexcept = default;

int Communicator::local_rank() const {
  return transport_->local_rank();
}
int Communicator::local_size() const {
  return transport_->local_size();
}
const char* Communicator::transport_name() const {
  return transport_->name();
}

void Communicator::abort(const std::string& reason) noexcept {
  transport_->abort(reason);
}

int64_t Communicator::staging_bytes(int ranks, DType wire, int64_t max_elements,
                                    int64_t max_all_to_all_elements) {
  const StagingBytes bytes = staging_for(ranks, wire, max_elements, max_all_to_all_elements);
  return static_cast<int64_t>(bytes.send + bytes.recv);
}

void Communicator::reserve(int64_t max_elements, int64_t max_all_to_all_elements) {
  const StagingBytes bytes = staging_for(size_, wire_, max_elements, max_all_to_all_elements);
  if (bytes.send > send_buffer_.size()) send_buffer_ = AlignedBuffer(bytes.send);
  if (bytes.recv > recv_buffer_.size()) recv_buffer_ = AlignedBuffer(bytes.recv);
  reserved_ = true;
}

std::byte* Communicator::staging(AlignedBuffer& buffer, size_t bytes) {
  if (bytes > buffer.size()) {
    if (reserved_) ++stats_.buffer_growths;
    buffer = AlignedBuffer(bytes + bytes / 4);
  }
  return buffer.data();
}

void Communicator::clear_spans() {
  std::fill(send_.begin(), send_.end(), ConstBytes{});
  std::fill(recv_.begin(), recv_.end(), Bytes{});
}

void Communicator::exchange() {
  counted([&] { transport_->exchange(send_, recv_); });
}

void Communicator::exchange_up_to() {
  counted([&] { transport_->exchange_up_to(send_, recv_, received_); });
  for (size_t r = 0; r < recv_.size(); ++r)
    if (static_cast<int>(r) != rank_) recv_[r] = recv_[r].first(received_[r]);
}

template <typename Exchange>
void Communicator::counted(const Exchange& exchange) {
  const auto self = static_cast<size_t>(rank_);
  size_t sent = 0;
  for (size_t r = 0; r < send_.size(); ++r) sent += r == self ? 0 : send_[r].size();
  try {
    exchange();
  } catch (const Error& e) {
    throw Error(e.kind(), fmt::format("{} number {} on rank {} of {}: {}", to_string(kind_),
                                      stats_.of(kind_).calls, rank_, size_, e.what()));
  }
  stats_.of(kind_).bytes_sent += static_cast<int64_t>(sent);
}

// ---- gathers and bytes

void Communicator::gather_rows_f32(ConstRows own, std::span<const int64_t> widths, Rows out, int root) {
  DUET_CHECK(std::ssize(widths) == size_ && root >= 0 && root < size_);
  DUET_CHECK(own.cols == widths[static_cast<size_t>(rank_)]);
  int64_t total_width = 0;
  for (int64_t w : widths) total_width += w;
  if (rank_ == root) DUET_CHECK(out.rows == own.rows && out.cols == total_width);
  Call call(*this, CollectiveKind::kGather);
  const int64_t step = wire::piece_rows(total_width, 1, kGatherPieceFloats);
  for (int64_t first = 0; first < own.rows; first += step) {
    const int64_t rows = std::min(step, own.rows - first);
    const ConstRows mine = own.row_slice(first, rows);
    clear_spans();
    if (rank_ != root) {
      const float* data = mine.data;
      if (!wire::is_dense(mine)) {
        std::byte* packed = staging(send_buffer_, static_cast<size_t>(rows * mine.cols) * sizeof(float));
        wire::encode(mine, DType::kF32, packed);
        data = reinterpret_cast<const float*>(packed);
      }
      send_[static_cast<size_t>(root)] = bytes_of(data, rows * mine.cols);
      exchange();
      continue;
    }
    std::byte* received = staging(recv_buffer_, static_cast<size_t>(rows * total_width) * sizeof(float));
    for (size_t r = 0; r < recv_.size(); ++r) {
      const size_t bytes = static_cast<size_t>(rows * widths[r]) * sizeof(float);
      recv_[r] = {received, bytes};
      received += bytes;
    }
    if (size_ > 1) exchange();
    int64_t column = 0;
    for (size_t r = 0; r < recv_.size(); ++r) {
      const Rows to = out.row_slice(first, rows).col_slice(column, widths[r]);
      if (static_cast<int>(r) == rank_) {
        wire::copy_rows(mine, to);
      } else {
        wire::decode(recv_[r].data(), DType::kF32, to, false);
      }
      column += widths[r];
    }
  }
  if (size_ == 1) return;
  clear_spans();
  std::byte done{1};
  if (rank_ == root) {
    for (size_t r = 0; r < send_.size(); ++r)
      if (static_cast<int>(r) != rank_) send_[r] = {&done, 1};
  } else {
    recv_[static_cast<size_t>(root)] = {&done, 1};
  }
  exchange();
}

void Communicator::all_gather_bytes(ConstBytes own, Bytes all) {
  DUET_CHECK(all.size() == own.size() * static_cast<size_t>(size_));
  Call call(*this, CollectiveKind::kAllGather);
  for (size_t r = 0; r < recv_.size(); ++r) {
    send_[r] = own;
    recv_[r] = all.subspan(r * own.size(), own.size());
  }
  wire::copy_bytes(own.data(), recv_[static_cast<size_t>(rank_)].data(), own.size());
  if (size_ > 1) exchange();
}

void Communicator::all_reduce_max(std::span<double> values) {
  if (size_ == 1 || values.empty()) {
    Call call(*this, CollectiveKind::kAllGather);
    return;
  }
  const size_t bytes = values.size_bytes();
  std::byte* all = staging(recv_buffer_, bytes * static_cast<size_t>(size_));
  all_gather_bytes(std::as_bytes(values), {all, bytes * static_cast<size_t>(size_)});
  for (int r = 0; r < size_; ++r) {
    for (size_t i = 0; i < values.size(); ++i) {
      double v = 0;
      std::memcpy(&v, all + static_cast<size_t>(r) * bytes + i * sizeof(double), sizeof v);
      values[i] = r == 0 ? v : std::max(values[i], v);
    }
  }
}

// ---- broadcast and barrier

void Communicator::broadcast_bytes(Bytes data, int root) {
  DUET_CHECK(root >= 0 && root < size_);
  Call call(*this, CollectiveKind::kBroadcast);
  if (size_ == 1 || data.empty()) return;
  clear_spans();
  if (rank_ == root) {
    std::fill(send_.begin(), send_.end(), ConstBytes(data));
  } else {
    recv_[static_cast<size_t>(root)] = data;
  }
  exchange();
}

void Communicator::broadcast(std::vector<std::byte>& data, int root) {
  DUET_CHECK(root >= 0 && root < size_);
  Call call(*this, CollectiveKind::kBroadcast);
  if (size_ == 1) return;
  struct Head {
    uint64_t bytes = 0;
    std::byte first[kBroadcastInline] = {};
  } head;
  const auto send_from_root = [&](Bytes bytes) {
    clear_spans();
    if (rank_ == root) {
      std::fill(send_.begin(), send_.end(), ConstBytes(bytes));
    } else {
      recv_[static_cast<size_t>(root)] = bytes;
    }
    exchange();
  };
  if (rank_ == root) {
    head.bytes = data.size();
    wire::copy_bytes(data.data(), head.first, std::min(data.size(), kBroadcastInline));
  }
  send_from_root(std::as_writable_bytes(std::span(&head, 1)));
  const size_t inlined = std::min(static_cast<size_t>(head.bytes), kBroadcastInline);
  if (rank_ != root) {
    data.resize(head.bytes);
    wire::copy_bytes(head.first, data.data(), inlined);
  }
  if (head.bytes > inlined) send_from_root(std::span(data).subspan(inlined));
}

void Communicator::barrier() {
  Call call(*this, CollectiveKind::kBarrier);
  if (size_ == 1) return;
  try {
    transport_->barrier();
  } catch (const Error& e) {
    throw Error(e.kind(), fmt::format("barrier number {} on rank {} of {}: {}",
                                      stats_.of(CollectiveKind::kBarrier).calls, rank_, size_, e.what()));
  }
}

}  // namespace duet
