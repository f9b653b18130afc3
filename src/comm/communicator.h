// The collectives of one rank, written once on Transport::exchange. The comm lane calls them, all
// ranks the same ones in the same order. What always holds (the exactness contract): every
// contribution, a rank's own included, is rounded to the wire type; sums are float32 in rank order,
// starting from rank 0's value; an element's result depends neither on the other elements of the
// call nor on how a batch was cut. One rank alone has no wire: nothing is rounded.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/transport.h"
#include "tensor/arena.h"
#include "tensor/view.h"

namespace duet {

enum class CollectiveKind : uint8_t {
  kAllReduce,
  kReduceScatter,
  kAllGather,
  kAllToAll,
  kGather,
  kBroadcast,
  kBarrier,
};
inline constexpr int kCollectiveKinds = 7;
/// "all_reduce", "reduce_scatter", …
const char* to_string(CollectiveKind kind);

/// What went over the wire since the start or the last reset_stats(). Written by the comm lane:
/// read it while the lane is idle.
struct CommStats {
  struct PerKind {
    int64_t calls = 0;
    int64_t bytes_sent = 0;  // payload that left this rank
    int64_t time_ns = 0;     // wall time inside the call, waiting included
  };
  std::array<PerKind, kCollectiveKinds> kinds{};
  int64_t buffer_growths = 0;  // times a staging buffer had to grow after reserve(); 0 in a planned run
  const PerKind& of(CollectiveKind kind) const { return kinds[static_cast<size_t>(kind)]; }
  PerKind& of(CollectiveKind kind) { return kinds[static_cast<size_t>(kind)]; }
  /// Sums over the kinds. `calls` counts collectives and must be equal on every rank.
  PerKind total() const;
};

/// --comm-dtype: "f32"/"float32", "bf16"/"bfloat16"; throws kUnsupported for int8 and others by name.
DType parse_wire_dtype(const std::string& name);

class Communicator {
 public:
  /// `wire` is kF32 or kBf16, equal on all ranks; throws kUnsupported by name for others.
  Communicator(std::unique_ptr<Transport> transport, DType wire);
  ~Communicator();
  Communicator(Communicator&&) noexcept;

  int rank() const { return rank_; }
  int size() const { return size_; }
  int local_rank() const;
  int local_size() const;
  DType wire() const { return wire_; }
  const char* transport_name() const;

  /// Takes the staging buffers, so that no step allocates: for reductions, scatters and gathers of up
  /// to `max_elements` (beyond kPieceElements they are done in pieces and need no more), and for
  /// all_to_all_rows and dispatch_rows of up to `max_all_to_all_elements` (of the wire's type, records
  /// rounded up to them) going out or coming in on this rank (the worst case of routing: every token comes
  /// here).
  void reserve(int64_t max_elements, int64_t max_all_to_all_elements = 0);
  /// Bytes that reserve() with these figures takes, for the memory plan.
  static int64_t staging_bytes(int ranks, DType wire, int64_t max_elements,
                               int64_t max_all_to_all_elements = 0);

  /// out[i] = wire(Σ_r wire(in_r[i])) on every rank. `out` is `in` itself or apart from it.
  void all_reduce(std::span<const float> in, std::span<float> out);
  /// inout[i] += wire(Σ_r wire(in_r[i])): adds the sum onto the residual stream.
  void all_reduce_add(std::span<const float> in, std::span<float> inout);
  /// The same on rows; strides may differ, shapes may not.
  void all_reduce(ConstRows in, Rows out);
  void all_reduce_add(ConstRows in, Rows inout);

  /// in: [rows, width], a partial sum of every row. Rank r owns rows [row_offsets[r],
  /// row_offsets[r + 1]) (size() + 1 offsets, from 0 to rows; slices may be uneven or empty) and gets
  /// out = Σ_r wire(in_r), or out += that with `add`; out: [own rows, width]. The sum is *not*
  /// rounded again: it stays with its owner and travels nowhere. `out` may be the own rows of `in`.
  void reduce_scatter_rows(ConstRows in, std::span<const int64_t> row_offsets, Rows out, bool add);

  /// own: [own rows, width] → out: [rows, width], every value rounded to the wire type, own rows
  /// too. `own` may be the caller's own rows inside `out`.
  void all_gather_rows(ConstRows own, std::span<const int64_t> row_offsets, Rows out);

  /// Rows to wherever the sender likes, each with a record of bytes that travels as it is (a token's expert
  /// ids and weights): one message per pair of ranks, whose length tells how many, so that nothing is asked
  /// first. send and recv as in all_to_all_rows, send_records and recv_records: record_bytes per row (a
  /// multiple of 4), in the same order. Rank r sends at most row_offsets[r + 1] - row_offsets[r] rows to any
  /// rank, so recv has room for row_offsets.back() rows; recv_counts[r] becomes what came from rank r.
  void dispatch_rows(ConstRows send, ConstBytes send_records, std::span<const int32_t> send_counts, Rows recv,
                     Bytes recv_records, std::span<const int64_t> row_offsets, size_t record_bytes,
                     std::span<int32_t> recv_counts);
  /// send: rows grouped by destination in rank order, send_counts[r] rows for rank r; recv gets the
  /// rows grouped by source in rank order. Values are rounded to the wire type, own rows too. The
  /// views may hold more rows than the counts say.
  void all_to_all_rows(ConstRows send, std::span<const int32_t> send_counts, Rows recv,
                       std::span<const int32_t> recv_counts);

  /// Columns sharded over ranks, exactly as they are: own [rows, widths[rank]] → on `root`
  /// out [rows, Σ widths] (elsewhere out is not touched). Widths may be uneven or 0. Returns on every rank
  /// when the root has all of it: what a sender's kernel took would otherwise pass for arrived, and the
  /// wire's time would be in nobody's figures.
  void gather_rows_f32(ConstRows own, std::span<const int64_t> widths, Rows out, int root);

  /// Every rank ends with root's bytes; the length travels too.
  void broadcast(std::vector<std::byte>& data, int root);
  /// Of a length that all ranks know.
  void broadcast_bytes(Bytes data, int root);
  /// all = own of rank 0, own of rank 1, …; own is equally long on every rank.
  void all_gather_bytes(ConstBytes own, Bytes all);
  /// Element-wise maximum over ranks, for measured costs; the same values on every rank.
  void all_reduce_max(std::span<double> values);
  void barrier();

  /// Wakes every rank that waits with Error(kPeer, reason); see Transport::abort. Any thread.
  void abort(const std::string& reason) noexcept;

  const CommStats& stats() const { return stats_; }
  void reset_stats() { stats_ = {}; }

  /// Reductions longer than this are done in pieces (results do not depend on it): 2 Mi elements
  /// are 4 MiB of bf16, far beyond any link's latency, and bound the staging memory.
  static constexpr int64_t kPieceElements = int64_t{1} << 21;

 private:
  class Call;  // times one collective and names it in errors

  std::byte* staging(AlignedBuffer& buffer, size_t bytes);
  void exchange();
  /// The same with messages as long as their senders say, up to recv_: recv_[r] shrinks to what came.
  void exchange_up_to();
  template <typename Exchange>
  void counted(const Exchange& exchange);
  void clear_spans();
  void reduce_rows(ConstRows in, Rows out, bool add);
  void reduce_piece(ConstRows in, Rows out, bool add);
  void scatter_piece(ConstRows in, std::span<const int64_t> row_offsets, int64_t first, int64_t rows,
                     Rows out, bool add);
  void gather_piece(ConstRows own, std::span<const int64_t> row_offsets, int64_t first, int64_t rows,
                    Rows out);

  std::unique_ptr<Transport> transport_;
  DType wire_;
  int rank_;
  int size_;
  size_t wire_bytes_;
  AlignedBuffer send_buffer_;
  AlignedBuffer recv_buffer_;
  std::vector<ConstBytes> send_;  // one span per rank, reused by every call
  std::vector<Bytes> recv_;
  std::vector<size_t> received_;           // bytes per rank
  std::vector<const std::byte*> sources_;  // one contribution per rank, for the ordered sum
  CommStats stats_;
  CollectiveKind kind_ = CollectiveKind::kBarrier;  // the call under way
  bool reserved_ = false;
};

}  // namespace duet
