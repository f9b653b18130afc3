// Under mpirun with two or more ranks: a failure must end the job with a message, never hang.
// usage: test_mpi_failures mismatch | throw
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/mpi_transport.h"

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  try {
    duet::Communicator c(duet::make_mpi_transport(), duet::DType::kBf16);
    try {
      c.barrier();
      if (what == "throw" && c.rank() == 1) throw std::runtime_error("disk on fire");
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
