// What a run measured, for people (lines) and for machines (JSON). Words as in docs/overlap.md.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace duet {

struct LlmOptions;
struct LlmStats;

/// Several lines, each ending in a newline.
std::string report_text(const LlmStats& stats, int ranks);
nlohmann::json report_json(const LlmStats& stats, const LlmOptions& options);

/// "1.5 GiB", "12.0 MiB", "800 B".
std::string human_bytes(double bytes);
/// "7.81 M", "671.03 B", "420".
std::string human_count(double count);

}  // namespace duet
