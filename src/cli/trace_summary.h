// Reads a trace that Duet wrote and adds it up: time per lane and stage kind, exposed time, hidden
// share. Pure apart from summarize_trace_file; called by `duet trace summary` and tests.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace duet {

struct TraceSummary {
  struct Kind {
    int lane = 0;  // 0 compute, 1 comm
    std::string kind;
    int64_t count = 0;    // slices, of all ranks
    double total_ms = 0;  // of all ranks
    double mean_us = 0;
    double share = 0;  // of its lane's busy time
  };
  struct Rank {
    int rank = 0;
    double compute_ms = 0;  // busy
    double comm_ms = 0;     // busy, lateness of other ranks included
    double exposed_ms = 0;  // the compute lane waited for the comm lane
  };
  std::string version;
  int ranks = 0;
  int64_t steps = 0;
  int64_t steps_overlapped = 0;  // with slices of more than one micro-batch
  double span_ms = 0;            // from the first slice to the end of the last
  double compute_ms = 0;         // the largest over ranks
  double comm_ms = 0;            // Σ over collectives of the shortest time over ranks
  double exposed_ms = 0;         // the largest over ranks
  // How unevenly the router spread rows over the ranks' experts: the busiest rank's (row, expert) pairs over
  // the ranks' mean, of all layers together and of the layer where it is largest; 0 where nothing is known.
  double expert_skew = 0;
  double worst_expert_skew = 0;
  int64_t worst_expert_layer = -1;
  std::vector<Kind> kinds;  // by lane, longest first
  std::vector<Rank> per_rank;
  double hidden_share() const { return comm_ms > 0 ? 1.0 - exposed_ms / comm_ms : 1.0; }
};

/// Throws Error(kCorrupt) that names `file` when the text is no JSON, is no trace of Duet, or holds
/// an event that is not as Duet writes it.
TraceSummary summarize_trace(std::string_view json, const std::string& file);
/// The same for a file; kNotFound when it is missing.
TraceSummary summarize_trace_file(const std::string& path);

std::string to_text(const TraceSummary& summary);
nlohmann::json to_json(const TraceSummary& summary);

}  // namespace duet
