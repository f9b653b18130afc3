// Under mpirun with two or more ranks: a failure must end the job with a message, never hang.
// usage: test_mpi_failures mismatch | throw | exit | settings [mpi | tcp]
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/job_transport.h"
#include "comm/job_world.h"

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  try {
    auto choice =
        argc > 2 && argv[2] == std::string("tcp") ? duet::CommTransport::kTcp : duet::CommTransport::kMpi;
    const auto world = duet::make_mpi_world();  // holds MPI open
    if (what == "settings" && world->rank() == 1) choice = duet::CommTransport::kAuto;
    duet::Communicator c(duet::make_job_transport(choice), duet::DType::kBf16);
    try {
      c.barrier();
      if (what == "throw" && c.rank() == 1) throw std::runtime_error("disk on fire");
      if (what == "exit" && c.rank() == 1) std::_Exit(3);  // as a crash does: the kernel closes what it had
      std::vector<float> v(what == "mismatch" && c.rank() == 1 ? 5000 : 4000);
      for (int i = 0; i < 3; ++i) c.all_reduce(v, v);
    } catch (const std::exception& e) {
      c.abort(e.what());
      throw;
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  std::printf("no failure seen\n");
  return 0;
}
