// duet doctor: what this machine has and reaches, measured in a few seconds, with advice.
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/json_text.h"
#include "cli/cli.h"
#include "cli/flags.h"
#include "cli/launch.h"
#include "cli/output_file.h"
#include "cli/report.h"
#include "cli/usage_error.h"
#include "cli/verbs.h"
#include "comm/communicator.h"
#include "comm/mpi_transport.h"
#include "comm/thread_group.h"
#include "kernels/ops.h"
#include "opcases/limits.h"

namespace duet {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kMeasureNs = 300'000'000;  // per figure: long enough for clocks to settle

/// Calls `body` for about kMeasureNs; nanoseconds per call of the fastest call.
double fastest_ns(const std::function<void()>& body) {
  double best = 1e18;
  const int64_t end = now_ns() + kMeasureNs;
  do {
    const int64_t start = now_ns();
    body();
    best = std::min(best, static_cast<double>(now_ns() - start));
  } while (now_ns() < end);
  return best;
}

double gemm_gflops(CpuLevel level, DType weights) {
  constexpr int64_t kM = 192, kN = 512, kK = 512;  // in cache: arithmetic, not memory
  const std::vector<float> a(kM * kK, 0.5f), w(kN * kK, 0.25f);
  AlignedBuffer c(kM * kN * sizeof(float));
  const PackedMatrix packed(WeightView{w.data(), DType::kF32, kN, kK, kK, 1}, weights);
  const Rounding rounding = weights == DType::kBf16 ? Rounding::kBf16 : Rounding::kNone;
  AlignedBuffer scratch(gemm_scratch_bytes(kM, kN, kK, 1) + 64);
  const double ns = fastest_ns([&] {
    gemm_single(level, rounding, ConstRows(a.data(), kM, kK), packed.view(), Rows(c.as<float>(), kM, kN),
                Accumulate::kNo, scratch.data());
  });
  return 2.0 * kM * kN * kK / ns;
}

double read_gb_per_s(int threads) {
  // More than the caches hold: some share hundreds of MiB, and a buffer that is read again must not be found
  // there.
  const int64_t cache = std::max(sysconf(_SC_LEVEL3_CACHE_SIZE), 0L);
  AlignedBuffer buffer(
      static_cast<size_t>(std::max(threads * (int64_t{48} << 20), std::min(2 * cache, int64_t{1} << 30))));
  std::fill_n(buffer.as<char>(), buffer.size(), 1);
  ThreadPool pool(threads);
  double best = 0;
  for (const int64_t end = now_ns() + kMeasureNs; now_ns() < end;)
    best = std::max(best, read_rate(buffer, pool));
  return best;
}

struct LinkFigures {
  double latency_us = 0;  // all-reduce of 16 values
  double gb_per_s = 0;    // wire bytes that leave a rank, all-reduce of 1 Mi values as bf16
};

LinkFigures measure_link(Communicator& comm) {
  constexpr int64_t kSmall = 16, kLarge = int64_t{1} << 20;
  constexpr int kWarm = 3, kSmallRounds = 200, kLargeRounds = 20;
  const std::vector<float> values(kLarge, 1.0f);
  std::vector<float> sums(kLarge);
  const auto rounds = [&](int64_t count, int times) {
    const std::span<const float> in(values.data(), static_cast<size_t>(count));
    const std::span<float> out(sums.data(), static_cast<size_t>(count));
    for (int i = 0; i < kWarm; ++i) comm.all_reduce(in, out);
    comm.barrier();
    const int64_t start = now_ns();
    for (int i = 0; i < times; ++i) comm.all_reduce(in, out);
    return static_cast<double>(now_ns() - start) / times;
  };
  LinkFigures figures;
  figures.latency_us = rounds(kSmall, kSmallRounds) / 1000;
  const double ns = rounds(kLarge, kLargeRounds);
  const double sent = 2.0 * static_cast<double>(kLarge) * 2 * (comm.size() - 1) / comm.size();
  figures.gb_per_s = sent / ns;
  return figures;
}

LinkFigures thread_link() {
  LinkFigures figures;
  run_ranks(2, DType::kBf16, [&](int rank, Communicator& comm) {
    const LinkFigures mine = measure_link(comm);
    if (rank == 0) figures = mine;
  });
  return figures;
}

/// Runs `command`, which starts `duet internal mpi-bandwidth` under mpirun, and reads rank 0's line.
ordered_json mpi_link(const std::vector<std::string>& command) {
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen((quote_words(command) + " 2>&1").c_str(), "r"),
                                                   pclose);
  if (!pipe) return {{"error", "cannot start mpirun"}};
  std::string text;
  std::array<char, 512> buffer{};
  while (fgets(buffer.data(), static_cast<int>(buffer.size()), pipe.get())) text += buffer.data();
  const size_t begin = text.find("{\"latency_us\"");
  if (begin != std::string::npos) {
    ordered_json figures = try_ordered_json(text.substr(begin, text.find('}', begin) - begin + 1));
    if (!figures.is_discarded()) return figures;
  }
  return {{"error", text.empty() ? "mpirun printed nothing" : text.substr(0, 400)}};
}

std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// "12345 kB" of /proc/meminfo, as bytes.
int64_t meminfo(const std::string& key) {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(key + ":")) return std::atoll(line.c_str() + key.size() + 1) * 1024;
  }
  return 0;
}

std::vector<std::string> advice(const ordered_json& facts, const Environment& env) {
  std::vector<std::string> lines;
  const int cores = facts["cores"];
  lines.push_back(fmt::format(
      "Use at most {} thread ranks here: one core each (--tensor-parallel-size, --threads).", cores));
  const std::string huge = first_line("/sys/kernel/mm/transparent_hugepage/enabled");
  if (huge.find("[never]") != std::string::npos) {
    lines.emplace_back(
        "Transparent huge pages are off: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled makes "
        "weights "
        "faster to read.");
  }
  const std::string governor = first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
  if (!governor.empty() && governor != "performance") {
    lines.push_back(
        fmt::format("The frequency governor is \"{}\": performance gives steadier timings.", governor));
  }
  if (env.contains("DUET_CPU") && facts["cpu_level"] != facts["cpu_level_detected"]) {
    lines.push_back(fmt::format("DUET_CPU lowers the CPU level to {}; the machine has {}.",
                                facts["cpu_level"].get<std::string>(),
                                facts["cpu_level_detected"].get<std::string>()));
  }
  const double load = std::atof(first_line("/proc/loadavg").c_str());
  if (load > 0.5 * cores) {
    lines.push_back(fmt::format(
        "The machine is busy (load {:.1f} on {} cores): the figures above are too low.", load, cores));
  }
  if (have_mpi() && facts["mpirun"].is_null()) {
    lines.emplace_back("mpirun is not on PATH: install openmpi-bin (or mpich) to run ranks as processes.");
  }
  if (!have_mpi()) lines.emplace_back("This build has no MPI: ranks are threads of one process.");
  return lines;
}

/// The command that measures MPI, checked before anything is measured; empty where nobody asked for it.
/// DUET_HOSTS alone does not ask: it may be set for other verbs.
std::vector<std::string> mpi_command_for(const Flags& flags, const CliContext& context) {
  if (!flags.boolean("mpi") && flags.source("hosts") != Flags::Source::kCommandLine) return {};
  if (flags.given("hosts")) {
    const std::vector<HostSlots> hosts = parse_hosts(flags.text("hosts"), 0, flags.shown("hosts"));
    if (hosts.size() == 1 && hosts[0].slots == 1) {
      throw UsageError(fmt::format("{0} {1} is one rank, and one rank has no link; try {0} {1}:2",
                                   flags.shown("hosts"), hosts[0].name));
    }
  }
  return launch_command(flags, context, {own_path(), "internal", "mpi-bandwidth"});
}

ordered_json examine(const Flags& flags, const CliContext& context) {
  const std::vector<std::string> mpi_command = mpi_command_for(flags, context);
  ordered_json facts;
  const CpuLevel level = active_cpu_level();
  const int cores = static_cast<int>(available_cores().size());
  facts["cpu"] = cpu_model_name();
  facts["cpu_level"] = to_string(level);
  facts["cpu_level_detected"] = to_string(detect_cpu_level());
  facts["cores"] = cores;
  facts["memory_bytes"] = meminfo("MemTotal");
  facts["memory_available_bytes"] = meminfo("MemAvailable");
  facts["gemm_f32_gflops_per_core"] = gemm_gflops(level, DType::kF32);
  facts["gemm_bf16_gflops_per_core"] = gemm_gflops(level, DType::kBf16);
  facts["memory_read_gb_per_s_one_core"] = read_gb_per_s(1);
  facts["memory_read_gb_per_s_all_cores"] = read_gb_per_s(std::min(cores, 64));
  const LinkFigures link = thread_link();
  facts["thread_ranks"] = {{"latency_us", link.latency_us}, {"gb_per_s", link.gb_per_s}};
  facts["mpi_library"] = mpi_library();
  const std::string mpirun = find_mpirun(context.env);
  facts["mpirun"] = mpirun.empty() ? ordered_json(nullptr) : ordered_json(mpirun);
  facts["mpi"] = nullptr;
  if (!mpi_command.empty()) facts["mpi"] = mpi_link(mpi_command);
  facts["advice"] = advice(facts, context.env);
  return facts;
}

std::string facts_text(const ordered_json& f) {
  const auto number = [&](const char* key) { return f[key].get<double>(); };
  std::string text = fmt::format(
      "CPU            {}\n"
      "level          {}, {} cores\n"
      "memory         {}, {} free\n"
      "arithmetic     {:.0f} GFLOP/s per core in f32, {:.0f} with bf16 weights\n"
      "memory read    {:.1f} GB/s one core, {:.1f} GB/s all cores\n"
      "thread ranks   all-reduce between two: {:.1f} us, {:.2f} GB/s\n"
      "MPI            {}{}\n",
      f["cpu"].get<std::string>(), f["cpu_level"].get<std::string>(), f["cores"].get<int>(),
      human_bytes(number("memory_bytes")), human_bytes(number("memory_available_bytes")),
      number("gemm_f32_gflops_per_core"), number("gemm_bf16_gflops_per_core"),
      number("memory_read_gb_per_s_one_core"), number("memory_read_gb_per_s_all_cores"),
      f["thread_ranks"]["latency_us"].get<double>(), f["thread_ranks"]["gb_per_s"].get<double>(),
      f["mpi_library"].get<std::string>(),
      f["mpirun"].is_null() ? ", no mpirun on PATH" : fmt::format(", {}", f["mpirun"].get<std::string>()));
  const ordered_json& mpi = f["mpi"];
  if (mpi.is_object() && mpi.contains("error")) {
    text += fmt::format("MPI ranks      failed: {}\n", mpi["error"].get<std::string>());
  } else if (mpi.is_object()) {
    text +=
        fmt::format("MPI ranks      all-reduce between {}: {:.1f} us, {:.2f} GB/s\n", mpi["ranks"].get<int>(),
                    mpi["latency_us"].get<double>(), mpi["gb_per_s"].get<double>());
  }
  for (const auto& line : f["advice"]) text += fmt::format("* {}\n", line.get<std::string>());
  return text;
}

}  // namespace

int verb_doctor(const Flags& flags, const CliContext& context) {
  const ordered_json facts = examine(flags, context);
  if (flags.given("json")) {
    OutputFile file(flags.text("json"), context.out);
    file.stream() << json_text(facts, 2) << '\n';
    file.commit();
    if (flags.text("json") == "-") return kExitOk;
  }
  context.out << facts_text(facts);
  return kExitOk;
}

int internal_mpi_bandwidth(const CliContext& context) {
  Communicator comm(make_mpi_transport(), DType::kBf16);
  const LinkFigures figures = measure_link(comm);
  if (comm.rank() == 0) {
    context.out << fmt::format("{{\"latency_us\": {:.3f}, \"gb_per_s\": {:.4f}, \"ranks\": {}}}\n",
                               figures.latency_us, figures.gb_per_s, comm.size());
  }
  return kExitOk;
}

}  // namespace duet
