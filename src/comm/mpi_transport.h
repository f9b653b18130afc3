// Ranks as processes under mpirun or srun. Nonblocking messages in chunks, tested between adaptive
// sleeps, because a blocking MPI call spins and takes the core from the compute lane. Only the
// thread that drives the transport calls MPI (level MPI_THREAD_SERIALIZED: it may be another thread
// than the one that made the transport, not at the same time). A build without MPI refuses by name.
#pragma once

#include <memory>

#include "comm/transport.h"

namespace duet {

/// True when this build has an MPI library (DUET_MPI is not off).
bool have_mpi();
/// "Open MPI 4.1.4", "MPICH 4.0.2", or "none".
const char* mpi_library();

/// True when the environment says that mpirun, mpiexec or srun started this process as one of
/// several ranks. Calls nothing of MPI.
bool launched_under_mpi();
/// Ranks according to that environment, 1 when not launched so; for choosing a default.
int mpi_world_size_from_env();

/// The world's transport; calls MPI_Init_thread unless somebody did, and MPI_Finalize at the end if
/// it called the first. Errors: kUnsupported without MPI, kPeer when MPI fails.
std::unique_ptr<Transport> make_mpi_transport();

}  // namespace duet
