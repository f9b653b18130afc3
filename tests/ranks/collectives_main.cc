// Under mpirun: the cases of tests/comm on MPI ranks. Exit status 0 when all pass on every rank.
#include <fmt/format.h>

#include <cstdio>
#include <exception>

#include "comm/collective_cases.h"
#include "comm/communicator.h"
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

int main() {
  std::unique_ptr<duet::Transport> world;  // holds MPI open while communicators come and go
  try {
    world = duet::make_mpi_transport();
    for (DType wire : {DType::kF32, DType::kBf16}) {
      Communicator c(duet::make_mpi_transport(), wire);
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
    if (world->rank() == 0) std::printf("%s: %d ranks, all cases pass\n", duet::mpi_library(), world->size());
  } catch (const std::exception& e) {
    if (world) world->abort(e.what());
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
