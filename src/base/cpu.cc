#include "base/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "base/error.h"

namespace duet {

const char* to_string(CpuLevel level) {
  switch (level) {
    case CpuLevel::kPortable: return "portable";
    case CpuLevel::kAvx2: return "avx2";
    case CpuLevel::kAvx512: return "avx512";
    case CpuLevel::kAvx512Bf16: return "avx512bf16";
    case CpuLevel::kAmx: return "amx";
  }
  return "unknown";
}

namespace {
constexpr CpuLevel kLevels[] = {CpuLevel::kPortable, CpuLevel::kAvx2, CpuLevel::kAvx512,
                                CpuLevel::kAvx512Bf16, CpuLevel::kAmx};
}  // namespace

CpuLevel parse_cpu_level(const std::string& name) {
  for (CpuLevel level : kLevels) {
    if (name == to_string(level)) return level;
  }
  throw Error(ErrorKind::kInvalidArgument,
              "CPU level '" + name + "' is unknown; use portable, avx2, avx512, avx512bf16 or amx");
}

#if defined(__x86_64__)
namespace {
// clang 14 does not know "f16c" in __builtin_cpu_supports.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

/// Tiles of bf16 and int8. Linux saves tile registers (8 KiB a thread) for processes only that asked.
bool has_amx() {
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;  // leaf 7, edx
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & kBf16) == 0 || (edx & kTile) == 0 || (edx & kInt8) == 0) return false;
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h of Linux 5.16
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
}  // namespace
#endif

namespace {
CpuLevel look_for_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (!avx2) return CpuLevel::kPortable;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  if (!avx512) return CpuLevel::kAvx2;
  const bool bf16 = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
  if (!bf16) return CpuLevel::kAvx512;
  return has_amx() ? CpuLevel::kAmx : CpuLevel::kAvx512Bf16;
#else
  return CpuLevel::kPortable;
#endif
}
}  // namespace

CpuLevel detect_cpu_level() {
  static const CpuLevel level = look_for_level();
  return level;
}

namespace {
/// Intel's cores take two cycles or more for a vdpbf16ps, so that widening to float32 is 1.5 times as fast
/// (measured: 120 against 215 GFLOP/s). They have tiles for bf16, but a virtual machine may hide them.
CpuLevel fastest_of(CpuLevel best) {
#if defined(__x86_64__)
  if (best == CpuLevel::kAvx512Bf16 && __builtin_cpu_is("intel")) return CpuLevel::kAvx512;
#endif
  return best;
}
}  // namespace

CpuLevel active_cpu_level() {
  const CpuLevel best = detect_cpu_level();
  const char* wanted = std::getenv("DUET_CPU");
  if (!wanted || !*wanted) return fastest_of(best);
  const CpuLevel level = parse_cpu_level(wanted);
  if (level > best) {
    throw Error(ErrorKind::kInvalidArgument,
                std::string("DUET_CPU=") + wanted + ": this machine only reaches " + to_string(best));
  }
  return level;
}

std::vector<CpuLevel> available_cpu_levels() {
  std::vector<CpuLevel> levels;
  for (CpuLevel level : kLevels) {
    if (level <= detect_cpu_level()) levels.push_back(level);
  }
  return levels;
}

std::vector<int> available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return {0};
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

bool pin_this_thread(const std::vector<int>& cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int core : cores) CPU_SET(core, &set);
  return sched_setaffinity(0, sizeof(set), &set) == 0;
}

bool pin_this_thread(int core) {
  return pin_this_thread(std::vector<int>{core});
}

std::string cpu_model_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown CPU";
}

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown host";
}

}  // namespace duet
