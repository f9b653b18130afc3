// Sums and rows: all-reduce, reduce-scatter, all-gather, all-to-all of rows.
#include <fmt/format.h>

#include "base/error.h"
#include "comm/collective_call.h"
#include "comm/communicator.h"
#include "comm/wire.h"

namespace duet {
namespace {

// First element of rank r's slice of `count` elements.
int64_t slice_begin(int64_t count, int ranks, int r) {
  const int64_t even = (count + ranks - 1) / ranks;
  const int64_t step = (even + kSliceAlignElements - 1) / kSliceAlignElements * kSliceAlignElements;
  return std::min(count, r * step);
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

}  // namespace

// ---- reductions

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
      wire::copy_rows(in, out);
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
  const int64_t step = wire::piece_rows(in.cols, 1, kPieceElements);
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
      wire::copy_rows(in, out);
      return;
    }
    for (int64_t r = 0; r < in.rows; ++r) {
      wire::decode(reinterpret_cast<const std::byte*>(in.row(r)), DType::kF32, out.row_slice(r, 1), true);
    }
    return;
  }
  if (in.cols == 0) return;
  const int64_t step = wire::piece_rows(in.cols, size_, kPieceElements);
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

// ---- all-gather

void Communicator::all_gather_rows(ConstRows own, std::span<const int64_t> row_offsets, Rows out) {
  check_offsets(row_offsets, size_, out.rows);
  const auto self = static_cast<size_t>(rank_);
  DUET_CHECK(own.rows == row_offsets[self + 1] - row_offsets[self] && out.cols == own.cols);
  Call call(*this, CollectiveKind::kAllGather);
  if (size_ == 1) {
    wire::copy_rows(own, out);
    return;
  }
  if (own.cols == 0) return;
  const int64_t step = wire::piece_rows(own.cols, size_, kPieceElements);
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
    wire::copy_bytes(mine.data, target(self).data, own_bytes);
    return;
  }
  for (size_t r = 0; r < recv_.size(); ++r) {
    wire::decode(r == self ? contribution.data() : recv_[r].data(), wire_, target(r), false);
  }
}

// ---- all-to-all

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
    wire::copy_rows(send, recv);
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
  wire::copy_bytes(send_[self].data(), recv_[self].data(), send_[self].size());
  exchange();
  if (!direct_recv) wire::decode(received, wire_, recv, false);
}

// A message: the records of its rows, then the rows.
void Communicator::dispatch_rows(ConstRows send, ConstBytes send_records,
                                 std::span<const int32_t> send_counts, Rows recv, Bytes recv_records,
                                 std::span<const int64_t> row_offsets, size_t record_bytes,
                                 std::span<int32_t> recv_counts) {
  DUET_CHECK(std::ssize(send_counts) == size_ && std::ssize(recv_counts) == size_ && send.cols == recv.cols);
  const int64_t room = row_offsets.back();
  check_offsets(row_offsets, size_, room);
  const auto rows_of = [&](size_t r) { return row_offsets[r + 1] - row_offsets[r]; };
  const auto self = static_cast<size_t>(rank_);
  int64_t send_rows = 0;
  for (int32_t n : send_counts) {
    DUET_CHECK(n >= 0 && n <= rows_of(self));
    send_rows += n;
  }
  DUET_CHECK(send_rows <= send.rows && room <= recv.rows && record_bytes % sizeof(float) == 0);
  DUET_CHECK(send_records.size() >= static_cast<size_t>(send_rows) * record_bytes &&
             recv_records.size() >= static_cast<size_t>(room) * record_bytes);
  Call call(*this, CollectiveKind::kAllToAll);
  if (size_ == 1) {
    wire::copy_rows(send.row_slice(0, send_rows), recv.row_slice(0, send_rows));
    wire::copy_bytes(send_records.data(), recv_records.data(), static_cast<size_t>(send_rows) * record_bytes);
    recv_counts[0] = send_counts[0];
    return;
  }
  const size_t row_bytes = static_cast<size_t>(send.cols) * wire_bytes_,
               message_row = record_bytes + row_bytes;
  std::byte* out = staging(send_buffer_, static_cast<size_t>(send_rows) * message_row);
  std::byte* in = staging(recv_buffer_, static_cast<size_t>(room) * message_row);
  const std::byte* record = send_records.data();
  for (size_t r = 0, first = 0; r < send_.size(); ++r) {
    const auto rows = static_cast<size_t>(send_counts[r]);
    wire::copy_bytes(record, out, rows * record_bytes);
    wire::encode(send.row_slice(static_cast<int64_t>(first), send_counts[r]), wire_,
                 out + rows * record_bytes);
    send_[r] = {out, rows * message_row};
    recv_[r] = {in, static_cast<size_t>(rows_of(r)) * message_row};
    record += rows * record_bytes;
    out += rows * message_row;
    in += recv_[r].size();
    first += rows;
  }
  exchange_up_to();
  std::byte* to_record = recv_records.data();
  int64_t first = 0;
  for (size_t r = 0; r < recv_.size(); ++r) {
    const ConstBytes message = r == self ? send_[r] : ConstBytes(recv_[r]);
    if (message.size() % message_row != 0)
      throw Error(ErrorKind::kPeer,
                  fmt::format("rank {} dispatches {} bytes to rank {}, in rows of {}: the ranks "
                              "disagree about a collective",
                              r, message.size(), rank_, message_row));
    const size_t rows = message.size() / message_row;
    wire::copy_bytes(message.data(), to_record, rows * record_bytes);
    wire::decode(message.data() + rows * record_bytes, wire_,
                 recv.row_slice(first, static_cast<int64_t>(rows)), false);
    recv_counts[r] = static_cast<int32_t>(rows);
    to_record += rows * record_bytes;
    first += static_cast<int64_t>(rows);
  }
}

}  // namespace duet
