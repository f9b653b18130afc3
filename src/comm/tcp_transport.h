// Ranks as processes of a job on an ordinary network: one TCP connection per pair of ranks, driven by
// one thread that blocks in poll() and is woken by data only. MPI over TCP has to be tested again and
// again, and each test and each timer takes time of the core that computes. Every message carries a
// small header, so that ranks that disagree get an error and not a hang.
#pragma once

#include <memory>

#include "comm/job_world.h"
#include "comm/transport.h"

namespace duet {

/// A collective of the world's ranks: connects each pair (tcp_connect.h). Throws Error(kPeer) on every
/// rank when any pair can't be connected, kInvalidArgument for unusable DUET_TCP_* variables.
std::unique_ptr<Transport> make_tcp_transport(std::unique_ptr<JobWorld> world);

}  // namespace duet
