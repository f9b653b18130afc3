// Under mpirun: the golden and exactness tests of tests/golden with processes as ranks. Rank 0 checks,
// the others work.
#include <gtest/gtest.h>

#include <cstdio>
#include <exception>

#include "comm/mpi_transport.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  try {
    // Holds MPI open while groups come and go; finalised at the end.
    const std::unique_ptr<duet::Transport> world = duet::make_mpi_transport();
    if (world->rank() != 0)
      delete testing::UnitTest::GetInstance()->listeners().Release(
          testing::UnitTest::GetInstance()->listeners().default_result_printer());
    const int failed = RUN_ALL_TESTS();
    if (testing::UnitTest::GetInstance()->test_to_run_count() == 0) {
      std::fprintf(stderr, "the filter names no test\n");
      return 1;
    }
    return failed;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
