// A link's latency and bandwidth around any transport, by sleeping to a deadline: overlap can be
// proven on two cores of one machine. The link is full duplex and each rank has one. Data moves
// first, then the rank sleeps until the moment at which that link would have delivered it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "comm/transport.h"

namespace duet {

struct LinkShape {
  double bytes_per_second = 0;  // > 0; infinity: no limit
  int64_t latency_ns = 0;       // ≥ 0
};

/// A link whose bandwidth may be changed between steps, while nobody uses it: benchmarks set the share that
/// communication has without loading the model again.
struct SharedLink {
  explicit SharedLink(const LinkShape& shape)
      : bytes_per_second(shape.bytes_per_second), latency_ns(shape.latency_ns) {}
  std::atomic<double> bytes_per_second;
  std::atomic<int64_t> latency_ns;
};

/// An exchange ends at t0 + latency + max(bytes out, bytes in) / bandwidth, t0 being the moment when
/// all ranks have arrived; a rank that sends and receives nothing is not delayed.
std::unique_ptr<Transport> make_shaped_transport(std::unique_ptr<Transport> inner, LinkShape shape);
std::unique_ptr<Transport> make_shaped_transport(std::unique_ptr<Transport> inner,
                                                 std::shared_ptr<const SharedLink> link);

/// Bytes per second. tc's syntax: bit, kbit, mbit, gbit, tbit (also with "/s" or "ps": "10Gbps" is
/// bits here, as network people write it), and B/s, kB/s, MB/s, GB/s, MiB/s …; case matters only in
/// b (bit) against B (byte). Throws kInvalidArgument for zero, negative, unknown units, trailing text.
double parse_bandwidth(const std::string& text);
/// Nanoseconds: "50us", "1.5ms", "2s", "800ns". Same errors.
int64_t parse_duration(const std::string& text);

}  // namespace duet
