#include "engine/rank_stats.h"

#include <algorithm>

#include "comm/communicator.h"

namespace duet {

int RankStats::kind_index(const std::string& kind, bool comm) {
  const auto [it, added] = index_.try_emplace(kind, static_cast<int>(kinds_.size()));
  if (added) kinds_.push_back({kind, comm, 0, 0});
  return it->second;
}

std::pair<int64_t, int64_t> RankStats::add(const Program& program, std::span<const StageTime> times,
                                           int64_t step_ns, int64_t tail_wait_ns) {
  int64_t exposed = tail_wait_ns, comm = 0, compute = 0;
  for (Lane lane : {Lane::kCompute, Lane::kComm}) {
    for (int s : program.lane_order(lane)) {
      const StageTime& time = times[static_cast<size_t>(s)];
      const int64_t busy = time.end_ns - time.start_ns;
      const int kind = kind_index(program.stages[static_cast<size_t>(s)].kind, lane == Lane::kComm);
      ++kinds_[static_cast<size_t>(kind)].count;
      if (lane == Lane::kCompute) {
        kinds_[static_cast<size_t>(kind)].ms += static_cast<double>(busy) * 1e-6;
        exposed += time.wait_ns;
        compute += busy;
        compute_cpu_ms_ += static_cast<double>(time.cpu_ns) * 1e-6;
      } else {
        collective_ns_.push_back(static_cast<float>(busy));
        collective_kind_.push_back(static_cast<uint8_t>(kind));
        comm += busy;
        comm_cpu_ms_ += static_cast<double>(time.cpu_ns) * 1e-6;
      }
    }
  }
  ++steps_;
  if (program.schedule != "sequential") ++overlapped_;
  step_ms_ += static_cast<double>(step_ns) * 1e-6;
  compute_ms_ += static_cast<double>(compute) * 1e-6;
  exposed_ms_ += static_cast<double>(exposed) * 1e-6;
  return {exposed, comm};
}

void RankStats::fold(Communicator& comm) {
  const size_t count = collective_ns_.size();
  std::vector<float> all(count * static_cast<size_t>(comm.size()));
  comm.all_gather_bytes(std::as_bytes(std::span<const float>(collective_ns_)),
                        std::as_writable_bytes(std::span<float>(all)));
  for (size_t i = 0; i < count; ++i) {
    float shortest = all[i];
    for (size_t r = 1; r < static_cast<size_t>(comm.size()); ++r)
      shortest = std::min(shortest, all[r * count + i]);
    kinds_[collective_kind_[i]].ms += static_cast<double>(shortest) * 1e-6;
  }
  collective_ns_.clear();
  collective_kind_.clear();
}

RunStats RankStats::total(Communicator& comm) {
  fold(comm);
  // The smallest is the largest of the negatives.
  std::vector<double> largest{compute_ms_, exposed_ms_, compute_cpu_ms_, comm_cpu_ms_, -compute_ms_};
  comm.all_reduce_max(largest);
  RunStats total;
  total.steps = steps_;
  total.steps_overlapped = overlapped_;
  total.step_ms = step_ms_;
  total.compute_ms = largest[0];
  total.exposed_ms = largest[1];
  total.compute_cpu_ms = largest[2];
  total.comm_cpu_ms = largest[3];
  total.compute_least_ms = -largest[4];
  total.kinds = kinds_;
  for (const RunStats::Kind& kind : kinds_) total.comm_ms += kind.comm ? kind.ms : 0.0;
  return total;
}

}  // namespace duet
