// duet bench kernels: each operation in the shapes that models give it, its oracle's verdict, and its speed
// beside the cores' limit of the same minute and beside the library that does the same.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <ostream>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/json_text.h"
#include "cli/bench_overlap.h"
#include "cli/cli.h"
#include "cli/flags.h"
#include "cli/output_file.h"
#include "cli/progress.h"
#include "cli/usage_error.h"
#include "cli/verbs.h"
#include "opcases/op_case.h"

namespace duet {
namespace {

using nlohmann::ordered_json;

constexpr int kTurns = 5;  // limits are measured between them, since machines wander

double seconds_of(const std::function<void()>& body) {
  const int64_t begin = now_ns();
  body();
  return static_cast<double>(now_ns() - begin) * 1e-9;
}

struct Measured {
  double error = 0;    // share of what is allowed
  double seconds = 0;  // of a run, median over the turns
  double share = 0;    // of the limit; 0: none is known
  bool memory = false;
  double library = 0;  // the library's time over ours; 0: none
};

class KernelBench {
 public:
  KernelBench(CpuLevel level, int threads, double budget)
      : level_(level), budget_(budget), cores_(available_cores()), buffer_(size_t{128} << 20) {
    const bool own = static_cast<int>(cores_.size()) >= threads;
    if (own) pin_this_thread(cores_.front());
    pool_ = std::make_unique<ThreadPool>(
        threads, own ? std::vector<int>(cores_.begin() + 1, cores_.begin() + threads) : std::vector<int>{});
    std::fill_n(buffer_.as<char>(), buffer_.size(), 1);
  }

  Measured measure(const OpCaseSpec& spec) {
    Measured m;
    {
      const std::unique_ptr<OpCase> small = spec.make(CaseSize::kSmall);
      Arena arena(small->scratch_bytes(pool_->threads()));
      m.error = small->error({level_, pool_.get(), &arena, spec.rounding});
    }
    const std::unique_ptr<OpCase> op = spec.make(CaseSize::kFull);
    Arena arena(op->scratch_bytes(pool_->threads()));
    const KernelContext cx{level_, pool_.get(), &arena, spec.rounding};
    op->run(cx);
    const double once = std::max(1e-7, seconds_of([&] { op->run(cx); }));
    const int runs = static_cast<int>(std::clamp(budget_ / kTurns / once, 1.0, 1e6));
    const bool library = pool_->threads() == 1 && spec.bytes == 0 && op->run_library();
    std::vector<double> seconds, shares, ratios;
    for (int turn = 0; turn < kTurns; ++turn) {
      const double s = seconds_of([&] {
                         for (int i = 0; i < runs; ++i) op->run(cx);
                       }) /
                       runs;
      seconds.push_back(s);
      const double compute =
          spec.flops > 0 ? spec.flops / multiply_rate(level_, spec.units, *pool_) * 1e-9 : 0;
      const double memory = spec.bytes > 0 ? spec.bytes / read_rate(buffer_, *pool_) * 1e-9 : 0;
      m.memory = memory > compute;
      shares.push_back(std::max(compute, memory) / s);
      if (library)
        ratios.push_back(seconds_of([&] {
                           for (int i = 0; i < runs; ++i) op->run_library();
                         }) /
                         runs / s);
    }
    m.seconds = median(seconds);
    m.share = median(shares);
    if (library) m.library = median(ratios);
    return m;
  }

 private:
  CpuLevel level_;
  double budget_;
  std::vector<int> cores_;
  AlignedBuffer buffer_;
  std::unique_ptr<ThreadPool> pool_;
};

std::string line_of(const OpCaseSpec& spec, const Measured& m) {
  const double amount = m.memory ? spec.bytes : spec.flops > 0 ? spec.flops : spec.touched;
  const char* unit = m.memory || spec.flops == 0 ? "GB/s" : spec.units == Units::kInt8 ? "GOP/s" : "GFLOP/s";
  std::string line = fmt::format("{:<9} {:<36} {:<5} {:>10.4f} {:>8.1f} {:<8}", spec.op, spec.shape,
                                 spec.weights, m.seconds * 1e3, amount / m.seconds * 1e-9, unit);
  line += m.share > 0 ? fmt::format(" {:>5.2f} of {:<10}", m.share, m.memory ? "memory" : "arithmetic")
                      : fmt::format(" {:>19}", "in a cache");
  line += m.error <= 1 ? fmt::format("  right ({:.2f})", m.error) : fmt::format("  WRONG ({:.2f})", m.error);
  if (m.library > 0) line += fmt::format("  {:.2f} x {}", m.library, library_name());
  return line;
}

}  // namespace

int verb_bench_kernels(const Flags& flags, const CliContext& context) {
  const std::string filter = flags.text("filter");
  const CpuLevel level = active_cpu_level();
  const int threads = flags.integer("threads") > 0 ? static_cast<int>(flags.integer("threads"))
                                                   : static_cast<int>(available_cores().size());
  std::vector<OpCaseSpec> specs;
  std::string names;
  for (OpCaseSpec& spec : op_cases()) {
    if (names.find(spec.op) == std::string::npos) names += (names.empty() ? "" : ", ") + spec.op;
    if (spec.name().find(filter) != std::string::npos) specs.push_back(std::move(spec));
  }
  if (specs.empty())
    throw UsageError(fmt::format("{}: no case's name contains \"{}\"; operations are {}",
                                 flags.shown("filter"), filter, names));
  std::unique_ptr<OutputFile> json;
  if (flags.given("json")) json = std::make_unique<OutputFile>(flags.text("json"), context.out);
  const bool table = !(json && flags.text("json") == "-");
  KernelBench bench(level, threads, flags.number("seconds"));
  context.err << fmt::format(
      "{}, level {}, {} thread{}; shares are of multiply-adds on registers and of a plain "
      "read, measured between the runs\n",
      cpu_model_name(), to_string(level), threads, threads == 1 ? "" : "s");
  ProgressView view(context);
  ordered_json rows = ordered_json::array();
  bool right = true;
  for (size_t i = 0; i < specs.size(); ++i) {
    const OpCaseSpec& spec = specs[i];
    view.measuring(spec.name(), static_cast<double>(i) / static_cast<double>(specs.size()));
    const Measured m = bench.measure(spec);
    view.clear();
    right = right && m.error <= 1;
    if (table) context.out << line_of(spec, m) << '\n' << std::flush;
    ordered_json row{{"op", spec.op},           {"shape", spec.shape},
                     {"weights", spec.weights}, {"level", to_string(level)},
                     {"threads", threads},      {"seconds", m.seconds},
                     {"flops", spec.flops},     {"memory_bytes", spec.bytes},
                     {"oracle_error", m.error}};
    if (m.share > 0) row["share_of_limit"] = m.share, row["limit"] = m.memory ? "memory" : "arithmetic";
    if (m.library > 0) row["times_library"] = m.library, row["library"] = library_name();
    rows.push_back(row);
  }
  if (json) {
    json->stream() << json_text(rows, 2) << '\n';
    json->commit();
  }
  if (!right) context.err << "a result differs from its oracle by more than rounding allows\n";
  return right ? kExitOk : kExitError;
}

}  // namespace duet
