// What the launcher of a job of processes provides: who is there, a small all-gather to set things
// up, and ending the job. Transports between processes are built on one (mpi_transport.h,
// tcp_transport.h); tests give the TCP transport a world of threads. One thread at a time.
#pragma once

#include <memory>
#include <string>
#include <vector>

namespace duet {

class JobWorld {
 public:
  virtual ~JobWorld() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual int local_rank() const = 0;
  virtual int local_size() const = 0;
  /// Every rank's text, in rank order. A collective; may spin: for set-up only.
  virtual std::vector<std::string> all_gather(const std::string& own) = 0;
  /// A peer failed: do not meet the others at the end, they may never come.
  virtual void set_failed() noexcept = 0;
  /// Says why on standard error and ends the whole job. From any thread.
  virtual void abort(const std::string& reason) noexcept = 0;
};

/// The world of mpirun or srun; calls MPI_Init_thread unless somebody did, and MPI_Finalize at the
/// end if it called the first. Errors: kUnsupported without MPI, kPeer when MPI fails.
std::unique_ptr<JobWorld> make_mpi_world();

}  // namespace duet
