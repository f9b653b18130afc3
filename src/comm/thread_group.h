// Ranks as threads of one process: the transport through shared memory, and the helper that runs
// a function on every rank. The embedded default of every command, and of most tests. Ranks meet at
// futex barriers; bytes are copied once, straight from the sender's span into the receiver's.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "comm/transport.h"
#include "tensor/dtype.h"

namespace duet {

class Communicator;

struct ThreadGroup {
  /// The transports of `ranks` thread ranks, by rank; each may be moved to its own thread. They
  /// share one hub, which lives until the last of them is gone.
  static std::vector<std::unique_ptr<Transport>> create(int ranks);
};

/// Runs fn(rank, communicator) on `ranks` threads and joins them. When one throws, the others are
/// aborted and the first exception is thrown here. `wrap` may put a transport around each rank's
/// (a shaped link).
void run_ranks(int ranks, DType wire, const std::function<void(int, Communicator&)>& fn,
               const std::function<std::unique_ptr<Transport>(std::unique_ptr<Transport>)>& wrap = {});

}  // namespace duet
