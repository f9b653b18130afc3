// What one rank measured, and the sums over ranks that design §1 defines: a collective counts with
// its shortest time over ranks, so that one rank's lateness is not taken for network time.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "engine/rank_group.h"
#include "exec/cpu_executor.h"

namespace duet {

class Communicator;

class RankStats {
 public:
  /// Adds one step. `tail_wait_ns`: what the compute lane waited at the end. Returns (exposed, comm
  /// busy) of this step on this rank, in ns.
  std::pair<int64_t, int64_t> add(const Program& program, std::span<const StageTime> times, int64_t step_ns,
                                  int64_t tail_wait_ns);
  /// True when so many collectives were noted that fold() is due; the same step on every rank.
  bool full() const { return collective_ns_.size() >= kMaxNoted; }
  /// Comm lane, all ranks: replaces noted collectives by their sums of shortest times.
  void fold(Communicator& comm);
  /// Comm lane, all ranks: totals over ranks.
  RunStats total(Communicator& comm);
  void reset() { *this = {}; }

 private:
  static constexpr size_t kMaxNoted = size_t{1} << 18;  // 1 MiB of floats per exchange

  int kind_index(const std::string& kind, bool comm);

  int64_t steps_ = 0, overlapped_ = 0;
  double step_ms_ = 0, compute_ms_ = 0, exposed_ms_ = 0, compute_cpu_ms_ = 0, comm_cpu_ms_ = 0;
  std::vector<RunStats::Kind> kinds_;
  std::map<std::string, int> index_;
  std::vector<float> collective_ns_;  // of collectives not yet folded, in order
  std::vector<uint8_t> collective_kind_;
};

}  // namespace duet
