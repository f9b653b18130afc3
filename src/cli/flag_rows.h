// The rows of the one table of flags, a file per concern (flags_*.cc); flag_table.cc puts them together.
// Each file says who takes its flags by the sets below.
#pragma once

#include <span>

#include "cli/flag_table.h"

namespace duet {

// Who takes what: flags of loading and running a model go to every verb that runs one, those of its
// size also to inspect.
constexpr uint32_t kRun = kGenerate | kLogits | kBenchOverlap | kBenchEngine | kPerplexity | kServe |
                          kBenchThroughput | kBenchLatency;
constexpr uint32_t kModel = kRun | kInspect;

// Headings of help and of docs/flags.md.
constexpr const char* kPrompts = "What goes in and out";
constexpr const char* kSampling = "Sampling";
constexpr const char* kLoading = "Model";
constexpr const char* kRanks = "Ranks and communication";
constexpr const char* kOverlap = "Dual-batch overlap";
constexpr const char* kMemory = "Scheduling and memory";
constexpr const char* kSteps = "Steps to measure";
constexpr const char* kLoad = "Requests to measure";
constexpr const char* kText = "Quality and formats";
constexpr const char* kServing = "Server";
constexpr const char* kReports = "Reports";

constexpr double kBig = 2147483647.0;

std::span<const FlagSpec> prompt_flags();
std::span<const FlagSpec> model_flags();
std::span<const FlagSpec> bench_flags();
std::span<const FlagSpec> load_flags();
std::span<const FlagSpec> serve_flags();
std::span<const FlagSpec> report_flags();
std::span<const IgnoredFlag> ignored_flags();

}  // namespace duet
