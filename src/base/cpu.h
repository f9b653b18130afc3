// The CPU's feature levels and cores. A level is chosen once per rank at start (ranks agree on
// the lowest); DUET_CPU forces a lower one. Every kernel is exact within a level.
#pragma once

#include <string>
#include <vector>

namespace duet {

enum class CpuLevel { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmx };  // ascending; see docs/architecture.md

const char* to_string(CpuLevel level);
/// Inverse of to_string; throws Error(kInvalidArgument) that lists the valid names.
CpuLevel parse_cpu_level(const std::string& name);
/// The highest level this machine runs (avx2 needs FMA and F16C; avx512 needs F, BW, DQ, VL, VNNI;
/// avx512bf16 also VBMI, which tables of 8-bit weights take; amx tiles of bf16 and int8, and the kernel's
/// leave to use them, which the first call asks for).
CpuLevel detect_cpu_level();
/// The fastest level of this machine, or what DUET_CPU says; throws when that is more than the machine has.
CpuLevel active_cpu_level();
/// portable … up to detect_cpu_level(), for tests that run them all.
std::vector<CpuLevel> available_cpu_levels();

/// Cores this process may run on (affinity mask), ascending.
std::vector<int> available_cores();
/// Pins the calling thread; false when the kernel refuses (then it stays as it was).
bool pin_this_thread(int core);
bool pin_this_thread(const std::vector<int>& cores);

/// "AMD EPYC …" from /proc/cpuinfo.
std::string cpu_model_name();
/// As gethostname() has it; "unknown host" where it has none.
std::string host_name();

}  // namespace duet
