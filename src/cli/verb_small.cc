// duet trace summary and duet version: little more than printing.
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <ostream>

#include "base/cpu.h"
#include "base/json_text.h"
#include "cli/cli.h"
#include "cli/flags.h"
#include "cli/output_file.h"
#include "cli/trace_chart.h"
#include "cli/trace_slices.h"
#include "cli/trace_summary.h"
#include "cli/usage_error.h"
#include "cli/verbs.h"
#include "comm/mpi_transport.h"

namespace duet {
namespace {

std::string compiler() {
#if defined(__clang__)
  return fmt::format("clang {}", __clang_version__);
#else
  return fmt::format("g++ {}", __VERSION__);
#endif
}

}  // namespace

int verb_trace_summary(const Flags& flags, const CliContext& context) {
  const TraceSummary summary = summarize_trace_file(flags.positional());
  if (flags.given("json")) {
    OutputFile file(flags.text("json"), context.out);
    file.stream() << json_text(to_json(summary), 2) << '\n';
    file.commit();
    if (flags.text("json") == "-") return kExitOk;
  }
  context.out << to_text(summary);
  return kExitOk;
}

int verb_trace_chart(const Flags& flags, const CliContext& context) {
  if (!flags.given("output")) throw UsageError("--output F.svg is missing");
  const std::string svg = trace_chart_svg(read_trace_file(flags.positional()), flags.positional(),
                                          flags.integer("layer"), static_cast<int>(flags.integer("rank")));
  OutputFile file(flags.text("output"), context.out);
  file.stream() << svg;
  file.commit();
  return kExitOk;
}

int verb_version(const Flags&, const CliContext& context) {
  context.out << fmt::format("duet {}\ncompiler   {}, {}\nCPU level  {} ({})\nMPI        {}\n", DUET_VERSION,
                             compiler(), DUET_BUILD_TYPE, to_string(active_cpu_level()), cpu_model_name(),
                             mpi_library());
  return kExitOk;
}

}  // namespace duet
