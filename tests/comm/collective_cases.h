// What every collective must do, said once: each case checks one rank's results against a slow
// oracle, bit for bit, and throws std::runtime_error that names what differs. Run on thread ranks
// by comm_test.cc and on MPI processes by tests/ranks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace duet::test {

struct CollectiveCase {
  std::string name;
  void (*run)(Communicator&);
};

const std::vector<CollectiveCase>& collective_cases();

/// Contribution of a rank: values of many magnitudes and both signs, so that the order of a sum and
/// every rounding show in the bits.
float sample(int rank, int64_t index);
std::vector<float> samples(int rank, int64_t count, int64_t first = 0);

/// Throws unless the two are the same bits.
void expect_same(const std::string& what, const std::vector<float>& got, const std::vector<float>& want);
void expect(bool ok, const std::string& what);
/// Throws unless `all` is blocks of `block_bytes` bytes of value 1, 2, 3, …
void expect_blocks(const std::string& what, const std::vector<std::byte>& all, size_t block_bytes);

}  // namespace duet::test
