// Flags of reports.
#include "cli/flag_rows.h"

namespace duet {
namespace {

constexpr FlagSpec kReportRows[] = {
    {"trace", FlagType::kText, "FILE", "", kReports, kGenerate | kBenchOverlap,
     "Write every stage's times as Chrome JSON; open it in Perfetto (ui.perfetto.dev) or read `duet trace "
     "summary FILE`."},
    {"layer", FlagType::kInt, "N", "1", kReports, kTraceChart, "The layer to draw.", 0, kBig},
    {"rank", FlagType::kInt, "R", "0", kReports, kTraceChart, "The rank to draw.", 0, kBig},
    {"json", FlagType::kText, "FILE", "", kReports,
     kGenerate | kInspect | kTrace | kDoctor | kBenchOverlap | kBenchEngine | kBenchKernels | kPerplexity,
     "Write the report for machines. \"-\" is standard output."},
    {"mpi", FlagType::kBool, "", "off", kReports, kDoctor,
     "Also measure MPI between two processes of this machine, under mpirun, or between those of --hosts."},
};

}  // namespace

std::span<const FlagSpec> report_flags() {
  return kReportRows;
}

}  // namespace duet
