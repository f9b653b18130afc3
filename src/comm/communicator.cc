#include "comm/communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "base/error.h"
#include "comm/wire.h"

namespace duet {
namespace {

// Slices of an all-reduce start at whole cache lines of bf16.
constexpr int64_t kSliceAlign = 32;
// A step's description rides along with its length when it is this short: one message, not two.
constexpr size_t kBroadcastInline = 504;
// Column-sharded float32 rows are gathered in pieces of about 1 MiB.
constexpr int64_t kGatherPieceFloats = int64_t{1} << 18;

// First element of rank r's slice of `count` elements.
int64_t slice_begin(int64_t count, int ranks, int r) {
  const int64_t even = (count + ranks - 1) / ranks;
  const int64_t step = (even + kSliceAlign - 1) / kSliceAlign * kSliceAlign;
  return std::min(count, r * step);
}

void copy_bytes(const void* from, void* to, size_t bytes) {
  if (bytes > 0 && from != to) std::memmove(to, from, bytes);
}

void copy_rows(ConstRows from, Rows to) {
  DUET_CHECK(from.rows == to.rows && from.cols == to.cols);
  for (int64_t r = 0; r < from.rows; ++r) {
    copy_bytes(from.row(r), to.row(r), static_cast<size_t>(from.cols) * sizeof(float));
  }
}

ConstBytes bytes_of(const float* data, int64_t count) {
  return {reinterpret_cast<const std::byte*>(data), static_cast<size_t>(count) * sizeof(float)};
}

// Rows per piece when every rank's slice is worked on at once; equal on all ranks.
int64_t piece_rows(int64_t width, int ranks, int64_t piece_elements) {
  return std::max<int64_t>(1, piece_elements / std::max<int64_t>(1, width * ranks));
}

int64_t longest_slice(std::span<const int64_t> row_offsets) {
  int64_t longest = 0;
  for (size_t r = 0; r + 1 < row_offsets.size(); ++r) {
    longest = std::max(longest, row_offsets[r + 1] - row_offsets[r]);
  }
  return longest;
}

void check_offsets(std::span<const int64_t> row_offsets, int ranks, int64_t rows) {
  DUET_CHECK(std::ssize(row_offsets) == ranks + 1);
  DUET_CHECK(row_offsets.front() == 0 && row_offsets.back() == rows);
  DUET_CHECK(std::is_sorted(row_offsets.begin(), row_offsets.end()));
}

struct StagingBytes {
  size_t send = 0;
  size_t recv = 0;
};

StagingBytes staging_for(int ranks, DType wire, int64_t max_elements, int64_t max_all_to_all_elements) {
  if (ranks == 1) return {};
  // A row wider than a piece would not be cut; no model has rows of 2 Mi elements.
  const int64_t reduce = std::min(max_elements, Communicator::kPieceElements) + kSliceAlign * ranks;
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

Communicator::Communicator(std::unique_ptr<Transport> transport, DType wire)
    : transport_(std::move(transport)),
      wire_(wire),
      rank_(transport_->rank()),
      size_(transport_->size()),
      wire_bytes_(dtype_bytes(wire)),
      send_(static_cast<size_t>(size_)),
      recv_(static_cast<size_t>(size_)),
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
  const auto self = static_cast<size_t>(rank_);
  size_t sent = 0;
  for (size_t r = 0; r < send_.size(); ++r) sent += r == self ? 0 : send_[r].size();
  try {
    transport_->exchange(send_, recv_);
  } catch (const Error& e) {
    throw Error(e.kind(), fmt::format("{} number {} on rank {} of {}: {}", to_string(kind_),
                                      stats_.of(kind_).calls, rank_, size_, e.what()));
  }
  stats_.of(kind_).bytes_sent += static_cast<int64_t>(sent);
}

// ---- reductions -------------------------------------------------------------------------------

void Communicator::all_reduce(std::span<const float> in, std::span<float> out) {
  DUET_CHECK(in.size() == out.size());
  const auto n = static_cast<int64_t>(in.size());
  reduce_rows({in.data(), 1, n}, {out.data(), 1, n}, false);
}

void Communicator::all_reduce_add(std::span<const float> in, std::span<float> inout) {
  DUET_CHECK(in.size() == inout.size());
  const auto n = static_cast<int64_t>(in.size());
  reduce_rows({in.data(), 1, n}, {inout.data(), 1, n}, true);
}

void Communicator::all_reduce(ConstRows in, Rows out) {
  reduce_rows(in, out, false);
}
void Communicator::all_reduce_add(ConstRows in, Rows inout) {
  reduce_rows(in, inout, true);
}

void Communicator::reduce_rows(ConstRows in, Rows out, bool add) {
  DUET_CHECK(in.rows == out.rows && in.cols == out.cols);
  Call call(*this, CollectiveKind::kAllReduce);
  if (size_ == 1) {
    if (add) {
      for (int64_t r = 0; r < in.rows; ++r) {
        wire::decode(reinterpret_cast<const std::byte*>(in.row(r)), DType::kF32, out.row_slice(r, 1), true);
      }
    } else {
      copy_rows(in, out);
    }
    return;
  }
  if (wire::is_dense(in) && wire::is_dense(out)) {  // one long row: pieces may end anywhere
    in = {in.data, 1, in.rows * in.cols};
    out = {out.data, 1, out.rows * out.cols};
  }
  if (in.rows == 1) {
    for (int64_t c = 0; c < in.cols; c += kPieceElements) {
      const int64_t count = std::min(kPieceElements, in.cols - c);
      reduce_piece(in.col_slice(c, count), out.col_slice(c, count), add);
    }
    return;
  }
  const int64_t step = piece_rows(in.cols, 1, kPieceElements);
  for (int64_t r = 0; r < in.rows; r += step) {
    const int64_t rows = std::min(step, in.rows - r);
    reduce_piece(in.row_slice(r, rows), out.row_slice(r, rows), add);
  }
}

// Reduce-scatter by pairwise exchange, ordered sum of one's own slice, all-gather of the rounded
// sums: the bytes of a ring in two rounds.
void Communicator::reduce_piece(ConstRows in, Rows out, bool add) {
  const int64_t count = in.rows * in.cols;
  if (count == 0) return;
  const auto begin = [&](int r) { return static_cast<size_t>(slice_begin(count, size_, r)) * wire_bytes_; };
  const auto length = [&](int r) { return begin(r + 1) - begin(r); };
  const bool direct_in = wire_ == DType::kF32 && wire::is_dense(in);
  const bool direct_out = wire_ == DType::kF32 && wire::is_dense(out) && !add;
  std::byte* packed =
      direct_in && direct_out ? nullptr : staging(send_buffer_, static_cast<size_t>(count) * wire_bytes_);
  if (!direct_in) wire::encode(in, wire_, packed);
  const std::byte* mine = direct_in ? reinterpret_cast<const std::byte*>(in.data) : packed;
  const size_t own_bytes = length(rank_);
  std::byte* received = staging(recv_buffer_, own_bytes * static_cast<size_t>(size_));
  for (int r = 0; r < size_; ++r) {
    const auto i = static_cast<size_t>(r);
    send_[i] = {mine + begin(r), length(r)};
    recv_[i] = {received + i * own_bytes, own_bytes};
    sources_[i] = r == rank_ ? mine + begin(r) : received + i * own_bytes;
  }
  exchange();

  std::byte* gathered = direct_out ? reinterpret_cast<std::byte*>(out.data) : packed;
  wire::ordered_sum_rounded(sources_, wire_, gathered + begin(rank_), own_bytes / wire_bytes_);
  for (int r = 0; r < size_; ++r) {
    const auto i = static_cast<size_t>(r);
    send_[i] = {gathered + begin(rank_), own_bytes};
    recv_[i] = {gathered + begin(r), length(r)};
  }
  exchange();
  if (!direct_out) wire::decode(gathered, wire_, out, add);
}

void Communicator::reduce_scatter_rows(ConstRows in, std::span<const int64_t> row_offsets, Rows out,
                                       bool add) {
  check_offsets(row_offsets, size_, in.rows);
  const auto self = static_cast<size_t>(rank_);
  DUET_CHECK(out.rows == row_offsets[self + 1] - row_offsets[self] && out.cols == in.cols);
  Call call(*this, CollectiveKind::kReduceScatter);
  if (size_ == 1) {
    if (!add) {
      copy_rows(in, out);
      return;
    }
    for (int64_t r = 0; r < in.rows; ++r) {
      wire::decode(reinterpret_cast<const std::byte*>(in.row(r)), DType::kF32, out.row_slice(r, 1), true);
    }
    return;
  }
  if (in.cols == 0) return;
  const int64_t step = piece_rows(in.cols, size_, kPieceElements);
  for (int64_t first = 0; first < longest_slice(row_offsets); first += step) {
    scatter_piece(in, row_offsets, first, step, out, add);
  }
}

// Rows first … first + rows - 1 of every rank's slice, as far as it reaches.
void Communicator::scatter_piece(ConstRows in, std::span<const int64_t> row_offsets, int64_t first,
                                 int64_t rows, Rows out, bool add) {
  const auto slice_rows = [&](size_t r) {
    return std::clamp<int64_t>(row_offsets[r + 1] - row_offsets[r] - first, 0, rows);
  };
  int64_t total_rows = 0;
  for (size_t r = 0; r < send_.size(); ++r) total_rows += slice_rows(r);
  const bool direct = wire_ == DType::kF32 && wire::is_dense(in);
  const size_t row_bytes = static_cast<size_t>(in.cols) * wire_bytes_;
  std::byte* packed = direct ? nullptr : staging(send_buffer_, static_cast<size_t>(total_rows) * row_bytes);
  const int64_t own_rows = slice_rows(static_cast<size_t>(rank_));
  const size_t own_bytes = static_cast<size_t>(own_rows) * row_bytes;
  std::byte* received = staging(recv_buffer_, own_bytes * send_.size());
  for (size_t r = 0; r < send_.size(); ++r) {
    const ConstRows slice = in.row_slice(row_offsets[r] + first, slice_rows(r));
    const size_t bytes = static_cast<size_t>(slice.rows) * row_bytes;
    if (direct) {
      send_[r] = {reinterpret_cast<const std::byte*>(slice.data), bytes};
    } else {
      wire::encode(slice, wire_, packed);
      send_[r] = {packed, bytes};
      packed += bytes;
    }
    recv_[r] = {received + r * own_bytes, own_bytes};
    sources_[r] = static_cast<int>(r) == rank_ ? send_[r].data() : recv_[r].data();
  }
  exchange();
  if (own_rows > 0) wire::ordered_sum(sources_, wire_, out.row_slice(first, own_rows), add);
}

// ---- gathers ----------------------------------------------------------------------------------

void Communicator::all_gather_rows(ConstRows own, std::span<const int64_t> row_offsets, Rows out) {
  check_offsets(row_offsets, size_, out.rows);
  const auto self = static_cast<size_t>(rank_);
  DUET_CHECK(own.rows == row_offsets[self + 1] - row_offsets[self] && out.cols == own.cols);
  Call call(*this, CollectiveKind::kAllGather);
  if (size_ == 1) {
    copy_rows(own, out);
    return;
  }
  if (own.cols == 0) return;
  const int64_t step = piece_rows(own.cols, size_, kPieceElements);
  for (int64_t first = 0; first < longest_slice(row_offsets); first += step) {
    gather_piece(own, row_offsets, first, step, out);
  }
}

void Communicator::gather_piece(ConstRows own, std::span<const int64_t> row_offsets, int64_t first,
                                int64_t rows, Rows out) {
  const auto target = [&](size_t r) {
    const int64_t n = std::clamp<int64_t>(row_offsets[r + 1] - row_offsets[r] - first, 0, rows);
    return out.row_slice(n > 0 ? row_offsets[r] + first : 0, n);
  };
  const auto self = static_cast<size_t>(rank_);
  const size_t row_bytes = static_cast<size_t>(own.cols) * wire_bytes_;
  const bool direct = wire_ == DType::kF32 && wire::is_dense(out) && wire::is_dense(own);
  const int64_t own_rows = target(self).rows;
  const ConstRows mine = own.row_slice(own_rows > 0 ? first : 0, own_rows);
  const size_t own_bytes = static_cast<size_t>(own_rows) * row_bytes;
  ConstBytes contribution{reinterpret_cast<const std::byte*>(mine.data), own_bytes};
  std::byte* received = nullptr;
  if (!direct) {
    std::byte* packed = staging(send_buffer_, own_bytes);
    wire::encode(mine, wire_, packed);
    contribution = {packed, own_bytes};
    int64_t total_rows = 0;
    for (size_t r = 0; r < recv_.size(); ++r) total_rows += target(r).rows;
    received = staging(recv_buffer_, static_cast<size_t>(total_rows) * row_bytes);
  }
  for (size_t r = 0; r < recv_.size(); ++r) {
    const Rows to = target(r);
    const size_t bytes = static_cast<size_t>(to.rows) * row_bytes;
    send_[r] = contribution;
    recv_[r] = {direct ? reinterpret_cast<std::byte*>(to.data) : received, bytes};
    if (!direct) received += bytes;
  }
  exchange();
  if (direct) {
    copy_bytes(mine.data, target(self).data, own_bytes);
    return;
  }
  for (size_t r = 0; r < recv_.size(); ++r) {
    wire::decode(r == self ? contribution.data() : recv_[r].data(), wire_, target(r), false);
  }
}

void Communicator::gather_rows_f32(ConstRows own, std::span<const int64_t> widths, Rows out, int root) {
  DUET_CHECK(std::ssize(widths) == size_ && root >= 0 && root < size_);
  DUET_CHECK(own.cols == widths[static_cast<size_t>(rank_)]);
  int64_t total_width = 0;
  for (int64_t w : widths) total_width += w;
  if (rank_ == root) DUET_CHECK(out.rows == own.rows && out.cols == total_width);
  Call call(*this, CollectiveKind::kGather);
  const int64_t step = piece_rows(total_width, 1, kGatherPieceFloats);
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
        copy_rows(mine, to);
      } else {
        wire::decode(recv_[r].data(), DType::kF32, to, false);
      }
      column += widths[r];
    }
  }
}

void Communicator::all_gather_bytes(ConstBytes own, Bytes all) {
  DUET_CHECK(all.size() == own.size() * static_cast<size_t>(size_));
  Call call(*this, CollectiveKind::kAllGather);
  for (size_t r = 0; r < recv_.size(); ++r) {
    send_[r] = own;
    recv_[r] = all.subspan(r * own.size(), own.size());
  }
  copy_bytes(own.data(), recv_[static_cast<size_t>(rank_)].data(), own.size());
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

// ---- all-to-all -------------------------------------------------------------------------------

void Communicator::exchange_counts(std::span<const int32_t> send_counts, std::span<int32_t> recv_counts) {
  DUET_CHECK(std::ssize(send_counts) == size_ && std::ssize(recv_counts) == size_);
  Call call(*this, CollectiveKind::kAllToAll);
  for (size_t r = 0; r < recv_.size(); ++r) {
    send_[r] = std::as_bytes(send_counts.subspan(r, 1));
    recv_[r] = std::as_writable_bytes(recv_counts.subspan(r, 1));
  }
  recv_counts[static_cast<size_t>(rank_)] = send_counts[static_cast<size_t>(rank_)];
  if (size_ > 1) exchange();
}

void Communicator::all_to_all_rows(ConstRows send, std::span<const int32_t> send_counts, Rows recv,
                                   std::span<const int32_t> recv_counts) {
  DUET_CHECK(std::ssize(send_counts) == size_ && std::ssize(recv_counts) == size_);
  const auto self = static_cast<size_t>(rank_);
  DUET_CHECK(send_counts[self] == recv_counts[self] && send.cols == recv.cols);
  int64_t send_rows = 0;
  int64_t recv_rows = 0;
  for (int32_t n : send_counts) send_rows += n;
  for (int32_t n : recv_counts) recv_rows += n;
  DUET_CHECK(send_rows <= send.rows && recv_rows <= recv.rows);
  Call call(*this, CollectiveKind::kAllToAll);
  send = send.row_slice(0, send_rows);
  recv = recv.row_slice(0, recv_rows);
  if (size_ == 1) {
    copy_rows(send, recv);
    return;
  }
  const size_t row_bytes = static_cast<size_t>(send.cols) * wire_bytes_;
  const bool direct_send = wire_ == DType::kF32 && wire::is_dense(send);
  const bool direct_recv = wire_ == DType::kF32 && wire::is_dense(recv);
  const auto* out = reinterpret_cast<const std::byte*>(send.data);
  if (!direct_send) {
    std::byte* packed = staging(send_buffer_, static_cast<size_t>(send_rows) * row_bytes);
    wire::encode(send, wire_, packed);
    out = packed;
  }
  std::byte* in = direct_recv ? reinterpret_cast<std::byte*>(recv.data)
                              : staging(recv_buffer_, static_cast<size_t>(recv_rows) * row_bytes);
  std::byte* const received = in;
  for (size_t r = 0; r < send_.size(); ++r) {
    send_[r] = {out, static_cast<size_t>(send_counts[r]) * row_bytes};
    recv_[r] = {in, static_cast<size_t>(recv_counts[r]) * row_bytes};
    out += send_[r].size();
    in += recv_[r].size();
  }
  copy_bytes(send_[self].data(), recv_[self].data(), send_[self].size());
  exchange();
  if (!direct_recv) wire::decode(received, wire_, recv, false);
}

void Communicator::all_to_all_bytes(ConstBytes send, std::span<const int64_t> send_bytes, Bytes recv,
                                    std::span<const int64_t> recv_bytes) {
  DUET_CHECK(std::ssize(send_bytes) == size_ && std::ssize(recv_bytes) == size_);
  Call call(*this, CollectiveKind::kAllToAll);
  size_t out = 0;
  size_t in = 0;
  for (size_t r = 0; r < send_.size(); ++r) {
    const auto out_bytes = static_cast<size_t>(send_bytes[r]);
    const auto in_bytes = static_cast<size_t>(recv_bytes[r]);
    DUET_CHECK(out_bytes <= send.size() - out && in_bytes <= recv.size() - in);
    send_[r] = send.subspan(out, out_bytes);
    recv_[r] = recv.subspan(in, in_bytes);
    out += out_bytes;
    in += in_bytes;
  }
  const auto self = static_cast<size_t>(rank_);
  DUET_CHECK(send_[self].size() == recv_[self].size());
  copy_bytes(send_[self].data(), recv_[self].data(), send_[self].size());
  if (size_ > 1) exchange();
}

// ---- broadcast and barrier --------------------------------------------------------------------

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
    copy_bytes(data.data(), head.first, std::min(data.size(), kBroadcastInline));
  }
  send_from_root(std::as_writable_bytes(std::span(&head, 1)));
  const size_t inlined = std::min(static_cast<size_t>(head.bytes), kBroadcastInline);
  if (rank_ != root) {
    data.resize(head.bytes);
    copy_bytes(head.first, data.data(), inlined);
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
