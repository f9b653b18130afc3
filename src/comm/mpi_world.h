// MPI as a JobWorld, with the communicator that MpiTransport sends on. Included by the files of this
// folder that call MPI, in builds that have one.
#pragma once

#include <mpi.h>

#include "comm/job_world.h"
#include "comm/transport.h"

namespace duet {

std::string mpi_error_text(int code);
/// Throws Error(kPeer) unless `code` is MPI_SUCCESS.
void check_mpi(int code, const char* what);

class MpiWorld final : public JobWorld {
 public:
  MpiWorld();
  ~MpiWorld() override;
  MpiWorld(const MpiWorld&) = delete;
  MpiWorld& operator=(const MpiWorld&) = delete;

  /// A duplicate of the world's: errors come back as codes.
  MPI_Comm comm() const { return comm_; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int local_rank() const override { return local_rank_; }
  int local_size() const override { return local_size_; }
  std::vector<std::string> all_gather(const std::string& own) override;
  void set_failed() noexcept override { failed_ = true; }
  void abort(const std::string& reason) noexcept override;

 private:
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  int local_rank_ = 0;
  int local_size_ = 1;
  bool owns_mpi_ = false;
  bool failed_ = false;
};

/// A transport that sends by MPI itself.
std::unique_ptr<Transport> make_mpi_transport_on(std::unique_ptr<MpiWorld> world);

}  // namespace duet
