// Under mpirun: the cases of tests/comm on processes. Exit status 0 when all pass on every rank.
// usage: test_mpi_collectives mpi | tcp
#include <fmt/format.h>

#include <cstdio>
#include <exception>

#include "comm/collective_cases.h"
#include "comm/communicator.h"
#include "comm/job_transport.h"
#include "comm/mpi_transport.h"

namespace {

using duet::Communicator;
using duet::DType;

// A message of several chunks to every rank, larger than any eager limit.
void large_messages(Communicator& c) {
  const size_t bytes = (size_t{9} << 20) + 17;
  std::vector<std::byte> own(bytes, static_cast<std::byte>(c.rank() + 1));
  std::vector<std::byte> all(bytes * static_cast<size_t>(c.size()));
  c.all_gather_bytes(own, all);
  duet::test::expect_blocks("large message", all, bytes);
}

void on_one_host(Communicator& c) {
  duet::test::expect(c.local_size() == c.size() && c.local_rank() == c.rank(), "local ranks of one host");
  duet::test::expect(duet::launched_under_mpi(), "launched_under_mpi() under mpirun");
  duet::test::expect(duet::mpi_world_size_from_env() == c.size(), "world size from the environment");
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "mpi";
  const auto choice = name == "tcp" ? duet::CommTransport::kTcp : duet::CommTransport::kMpi;
  std::unique_ptr<duet::Transport> world;  // holds MPI open while communicators come and go
  try {
    world = duet::make_mpi_transport();
    for (DType wire : {DType::kF32, DType::kBf16}) {
      Communicator c(duet::make_job_transport(choice), wire);
      duet::test::expect(c.transport_name() == name, "the transport that was asked for");
      on_one_host(c);
      for (const auto& test_case : duet::test::collective_cases()) {
        try {
          test_case.run(c);
        } catch (const std::exception& e) {
          throw std::runtime_error(fmt::format("{} ({}): {}", test_case.name, to_string(wire), e.what()));
        }
      }
      large_messages(c);
      c.barrier();
    }
    // On one host without a choice: MPI's shared memory.
    duet::test::expect(duet::make_job_transport(duet::CommTransport::kAuto)->name() == std::string("mpi"),
                       "auto");
    if (world->rank() == 0)
      std::printf("%s, %s: %d ranks, all cases pass\n", duet::mpi_library(), name.c_str(), world->size());
  } catch (const std::exception& e) {
    if (world) world->abort(e.what());
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
