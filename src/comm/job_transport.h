// How the processes of a job exchange data: by MPI, or by TCP connections of their own. The choice
// is made once, for all ranks the same. Called by rank groups and benchmarks.
#pragma once

#include <cstdint>
#include <memory>

#include "comm/transport.h"

namespace duet {

enum class CommTransport : uint8_t { kAuto, kMpi, kTcp };

/// A collective of the job's ranks. kAuto: TCP when the ranks live on more than one host and none of them
/// has a fast fabric (InfiniBand, RoCE, EFA, Slingshot), which MPI drives better; MPI otherwise. Every rank
/// must ask for the same; kInvalidArgument says who did not. Other errors: those of make_mpi_world and
/// make_tcp_transport.
std::unique_ptr<Transport> make_job_transport(CommTransport choice);

}  // namespace duet
