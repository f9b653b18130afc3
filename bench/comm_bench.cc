// All-reduce between thread ranks (and MPI ranks under mpirun), per size: time, GB/s, and the CPU time that
// the comm thread takes while it does so. Two figures matter: bytes reduced per second (copies and sums bound
// it by memory bandwidth), and the CPU share, which is what a comm lane steals from the compute lane. usage:
// comm_bench [--ranks N] [--link 1gbit 50us]
#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "comm/communicator.h"
#include "comm/mpi_transport.h"
#include "comm/shaped_transport.h"
#include "comm/thread_group.h"

namespace duet {
namespace {

int64_t thread_cpu_ns() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

void sweep(Communicator& c) {
  if (c.rank() == 0) {
    fmt::print("{} ranks over {}, wire {}\n", c.size(), c.transport_name(), to_string(c.wire()));
    fmt::print("{:>12} {:>12} {:>12} {:>10} {:>12} {:>8}\n", "elements", "median us", "min us", "GB/s",
               "cpu us", "cpu %");
  }
  c.reserve(Communicator::kPieceElements);
  for (int64_t elements = 256; elements <= int64_t{1} << 22; elements *= 4) {
    std::vector<float> v(static_cast<size_t>(elements), 1.0f);
    std::vector<float> out(v.size());
    std::vector<int64_t> times;
    const int repeats = elements <= 65536 ? 50 : 15;
    c.all_reduce(v, out);  // warm
    const int64_t cpu_start = thread_cpu_ns();
    const int64_t start = now_ns();
    for (int i = 0; i < repeats; ++i) {
      const int64_t t = now_ns();
      c.all_reduce(v, out);
      times.push_back(now_ns() - t);
    }
    const auto cpu = static_cast<double>(thread_cpu_ns() - cpu_start);
    const auto wall = static_cast<double>(now_ns() - start);
    std::sort(times.begin(), times.end());
    const auto median = static_cast<double>(times[times.size() / 2]);
    if (c.rank() == 0) {
      fmt::print("{:>12} {:>12.1f} {:>12.1f} {:>10.3f} {:>12.1f} {:>8.1f}\n", elements, median / 1e3,
                 static_cast<double>(times[0]) / 1e3, static_cast<double>(elements) * 4 / median,
                 cpu / repeats / 1e3, 100 * cpu / wall);
    }
  }
}

int run(int argc, char** argv) {
  int ranks = 2;
  LinkShape shape;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--ranks" && i + 1 < argc) {
      ranks = std::atoi(argv[++i]);
    } else if (flag == "--link" && i + 2 < argc) {
      shape.bytes_per_second = parse_bandwidth(argv[++i]);
      shape.latency_ns = parse_duration(argv[++i]);
    } else {
      fmt::print("usage: comm_bench [--ranks N] [--link 1gbit 50us]\n");
      return 2;
    }
  }
  const auto wrap = [&](std::unique_ptr<Transport> t) {
    return shape.bytes_per_second > 0 ? make_shaped_transport(std::move(t), shape) : std::move(t);
  };
  for (const DType wire : {DType::kBf16, DType::kF32}) {
    if (launched_under_mpi()) {
      static const std::unique_ptr<Transport> kWorld = make_mpi_transport();  // holds MPI open
      Communicator c(wrap(make_mpi_transport()), wire);
      sweep(c);
    } else {
      run_ranks(
          ranks, wire, [](int, Communicator& c) { sweep(c); }, wrap);
    }
  }
  return 0;
}

}  // namespace
}  // namespace duet

int main(int argc, char** argv) {
  try {
    return duet::run(argc, argv);
  } catch (const std::exception& e) {
    fmt::print(stderr, "{}\n", e.what());
    return 1;
  }
}
