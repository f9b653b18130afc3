// The slices of a trace that Duet wrote, read back and checked: what `duet trace summary` adds up and
// `duet trace chart` draws.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace duet {

/// One "X" event: a stage that ran.
struct TraceSlice {
  int rank = 0;
  int lane = 0;  // 0 compute, 1 comm
  std::string kind;
  double start_us = 0;
  double duration_us = 0;
  double wait_us = -1;      // < 0: not given
  double expert_rows = -1;  // (row, expert) pairs of an "experts" slice; < 0: not given
  int64_t step = 0;
  int64_t layer = 0;  // -1: before the first or after the last
  int64_t micro_batch = 0;
  bool sequential = false;  // of a program that overlaps nothing
};

/// Throws Error(kCorrupt) that names `file` and the event that is not as Duet writes it.
std::vector<TraceSlice> read_slices(const nlohmann::json& events, const std::string& file);
/// The whole of a trace's text, parsed; kCorrupt when it is no JSON or no trace of Duet.
nlohmann::json parse_trace(std::string_view text, const std::string& file);
/// A file's bytes; kNotFound.
std::string read_trace_file(const std::string& path);

}  // namespace duet
