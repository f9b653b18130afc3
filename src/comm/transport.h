// How bytes get from rank to rank: one pairwise exchange, from which every collective is built
// (communicator.h). Implementations: threads of one process (thread_group.h), MPI
// (mpi_transport.h), and a shaped link around either (shaped_transport.h). A Transport belongs to
// one rank and is used by one thread at a time, the rank's comm lane; waiting never spins, because
// the cores belong to the compute lanes. All ranks make the same calls in the same order.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace duet {

using ConstBytes = std::span<const std::byte>;
using Bytes = std::span<std::byte>;

class Transport {
 public:
  virtual ~Transport() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// Place among the ranks of this host, for pinning. Threads: the same as rank() and size().
  virtual int local_rank() const { return rank(); }
  virtual int local_size() const { return size(); }
  /// "threads", "mpi", "shaped threads", … for reports.
  virtual const char* name() const = 0;

  /// send[r] goes to rank r while recv[r] is filled by rank r; both hold size() spans. Empty spans
  /// carry nothing, the entries of one's own rank are ignored, and what a sends to b must be as
  /// long as what b expects of a. Every rank takes part, also with nothing to say. On return the
  /// caller may reuse both sides. Throws Error(kPeer) when sizes disagree, a peer failed or a
  /// rank called abort(); the transport is of no use after that.
  virtual void exchange(std::span<const ConstBytes> send, std::span<const Bytes> recv) = 0;

  /// The same where only the sender knows how long a message is: recv[r] is room, received[r] is how much
  /// of it rank r filled. More than there is room for throws Error(kPeer), as above.
  virtual void exchange_up_to(std::span<const ConstBytes> send, std::span<const Bytes> recv,
                              std::span<size_t> received) = 0;

  /// Returns when every rank has called it.
  virtual void barrier() = 0;

  /// From any thread: ranks that wait, now or later, throw Error(kPeer) with `reason` instead of
  /// hanging (MPI: prints the reason and ends the whole job). The first reason stays.
  virtual void abort(const std::string& reason) noexcept = 0;
};

/// What to say where rank `from` sends other than rank `to` expects, or more than it has room for (up_to).
std::string disagreement(int from, size_t sent, int to, size_t expected, bool up_to = false);

}  // namespace duet
