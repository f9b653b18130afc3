// All-reduce between thread ranks, or under mpirun between processes, per size: time, GB/s, bytes per second
// that one rank sends (as many come in meanwhile), and what it costs. "cpu" is the CPU time of the comm
// thread. With --compute a second thread of each rank computes on the same cores meanwhile, as a compute lane
// does; "lost" is the part of its work that it did not get done, per byte sent: what communication really
// costs. usage: comm_bench [--ranks N] [--link 1gbit 50us] [--transport auto|mpi|tcp] [--compute] [--wire
// bf16|f32]
#include <fmt/format.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "comm/communicator.h"
#include "comm/job_transport.h"
#include "comm/mpi_transport.h"
#include "comm/shaped_transport.h"
#include "comm/thread_group.h"
#include "exec/comm_lane.h"

namespace duet {
namespace {

// Arithmetic on this rank's cores, as fast as they go, counted.
class Compute {
 public:
  Compute() : thread_([this](const std::stop_token& stop) { loop(stop); }) {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    const uint64_t first = count();
    const int64_t start = now_ns();
    std::this_thread::sleep_for(std::chrono::milliseconds(700));
    alone_per_ns_ = static_cast<double>(count() - first) / static_cast<double>(now_ns() - start);
  }
  uint64_t count() const { return count_.load(std::memory_order_relaxed); }
  /// Nanoseconds' worth of work that was not done since `first` was read, `wall_ns` ago.
  double lost_ns(uint64_t first, double wall_ns) const {
    return wall_ns - static_cast<double>(count() - first) / alone_per_ns_;
  }

 private:
  void loop(const std::stop_token& stop) {
    double x = 1;
    while (!stop.stop_requested()) {
      for (int i = 0; i < 1000; ++i) x = x * 1.0000001 + 1e-9;
      if (x > 2) x = 1;
      count_.fetch_add(1, std::memory_order_relaxed);
    }
  }
  std::atomic<uint64_t> count_{0};
  double alone_per_ns_ = 0;
  std::jthread thread_;  // last: starts when the rest is there
};

// Bytes that one rank sends in an all-reduce: all but its own share, once to reduce and once to gather.
double sent_bytes(const Communicator& c, int64_t elements) {
  const double wire = c.wire() == DType::kBf16 ? 2 : 4;
  return 2 * static_cast<double>(elements) * wire * (c.size() - 1) / c.size();
}

void sweep(Communicator& c, const Compute* other) {
  if (c.rank() == 0) {
    fmt::print("{} ranks over {}, wire {}\n", c.size(), c.transport_name(), to_string(c.wire()));
    fmt::print("{:>10} {:>12} {:>12} {:>8} {:>12} {:>10} {:>7} {:>9}{}\n", "elements", "median us", "min us",
               "GB/s", "sent Mbit/s", "cpu us", "cpu %", "cpu ns/B", other != nullptr ? "  lost ns/B" : "");
  }
  c.reserve(Communicator::kPieceElements);
  for (int64_t elements = 256; elements <= int64_t{1} << 22; elements *= 4) {
    std::vector<float> v(static_cast<size_t>(elements), 1.0f);
    std::vector<float> out(v.size());
    std::vector<int64_t> times;
    const int repeats = elements <= 65536 ? 50 : 15;
    c.all_reduce(v, out);  // warm
    const uint64_t first = other != nullptr ? other->count() : 0;
    const int64_t cpu_start = thread_cpu_ns();
    const int64_t start = now_ns();
    for (int i = 0; i < repeats; ++i) {
      const int64_t t = now_ns();
      c.all_reduce(v, out);
      times.push_back(now_ns() - t);
    }
    const auto cpu = static_cast<double>(thread_cpu_ns() - cpu_start);
    const auto wall = static_cast<double>(now_ns() - start);
    const double sent = sent_bytes(c, elements);
    const double lost = other != nullptr ? other->lost_ns(first, wall) / repeats / sent : 0;
    std::sort(times.begin(), times.end());
    const auto median = static_cast<double>(times[times.size() / 2]);
    if (c.rank() == 0) {
      fmt::print("{:>10} {:>12.1f} {:>12.1f} {:>8.3f} {:>12.1f} {:>10.1f} {:>7.1f} {:>9.2f}{}\n", elements,
                 median / 1e3, static_cast<double>(times[0]) / 1e3,
                 static_cast<double>(elements) * 4 / median, sent / median * 8e3, cpu / repeats / 1e3,
                 100 * cpu / wall, cpu / repeats / sent,
                 other != nullptr ? fmt::format(" {:>10.2f}", lost) : "");
    }
  }
}

int usage() {
  fmt::print(
      "usage: comm_bench [--ranks N] [--link 1gbit 50us] [--transport auto|mpi|tcp] [--compute] "
      "[--wire bf16|f32]\n");
  return 2;
}

int run(int argc, char** argv) {
  int ranks = 2;
  LinkShape shape;
  bool compute = false;
  CommTransport choice = CommTransport::kAuto;
  std::vector<DType> wires = {DType::kBf16, DType::kF32};
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const std::string value = i + 1 < argc ? argv[i + 1] : "";
    if (flag == "--ranks" && !value.empty()) {
      ranks = std::atoi(argv[++i]);
    } else if (flag == "--link" && i + 2 < argc) {
      shape.bytes_per_second = parse_bandwidth(argv[++i]);
      shape.latency_ns = parse_duration(argv[++i]);
    } else if (flag == "--transport" && (value == "auto" || value == "mpi" || value == "tcp")) {
      choice = value == "tcp"   ? CommTransport::kTcp
               : value == "mpi" ? CommTransport::kMpi
                                : CommTransport::kAuto;
      ++i;
    } else if (flag == "--compute") {
      compute = true;
    } else if (flag == "--wire" && !value.empty()) {
      wires = {parse_wire_dtype(argv[++i])};
    } else {
      return usage();
    }
  }
  const auto wrap = [&](std::unique_ptr<Transport> t) {
    return shape.bytes_per_second > 0 ? make_shaped_transport(std::move(t), shape) : std::move(t);
  };
  if (!launched_under_mpi()) {
    if (compute) return usage();
    for (const DType wire : wires) {
      run_ranks(
          ranks, wire, [](int, Communicator& c) { sweep(c, nullptr); }, wrap);
    }
    return 0;
  }
  const std::unique_ptr<Transport> world = make_mpi_transport();  // holds MPI open
  const std::unique_ptr<Compute> other = compute ? std::make_unique<Compute>() : nullptr;
  CommLane lane;  // with the priority that communication has beside a compute lane
  for (const DType wire : wires) {
    lane.call([&] {
      Communicator c(wrap(make_job_transport(choice)), wire);
      sweep(c, other.get());
    });
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
