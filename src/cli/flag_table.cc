#include "cli/flag_table.h"

#include <algorithm>
#include <cctype>

#include "cli/flag_rows.h"
#include "cli/serve_hosts.h"

namespace duet {
namespace {

constexpr PlainVariable kPlain[] = {
    {"DUET_CPU", "Use a lower CPU level than the machine has: portable, avx2, avx512, avx512bf16, amx."},
    {"DUET_LOG", "Least important lines shown on standard error: debug, info, warning, error, off."},
    {"DUET_FAULT_DRILL",
     "RANK:STEP:throw or RANK:STEP:hang: that rank fails or hangs in the middle of that step, to rehearse "
     "what "
     "then happens."},
    {kServeSocketVariable, "Set by `duet serve --hosts` for its ranks: where rank 0 listens."},
    {"DUET_TCP_INTERFACES",
     "With --comm-transport tcp: interfaces or networks between the hosts, best first: eth0,10.0.0.0/24. "
     "Default: "
     "what OMPI_MCA_btl_tcp_if_include says, else all."},
    {"DUET_TCP_PORTS",
     "With --comm-transport tcp: ports to listen on, first-last, one for every rank of a host. Default: any "
     "free port."},
};

constexpr const char* kNoPipeline = "Duet splits a model over ranks by tensors and experts only";
constexpr const char* kNoLora = "LoRA adapters are not supported; merge the adapter into the weights first";
constexpr const char* kNoMultimodal = "multimodal inputs are not supported; Duet takes text and token ids";
constexpr const char* kNoSpeculation = "speculative decoding is not supported";
constexpr const char* kNoGpu = "Duet runs on CPUs; --kv-cache-memory sets the size of the KV cache";

constexpr RefusedFlag kRefused[] = {
    {"pipeline-parallel-size", "-pp", true, kNoPipeline},
    {"data-parallel-size", "-dp", true, kNoPipeline},
    {"decode-context-parallel-size", "-dcp", true, kNoPipeline},
    {"enable-lora", nullptr, false, kNoLora},
    {"lora-modules", nullptr, false, kNoLora},
    {"lora", nullptr, false, kNoLora},
    {"max-loras", nullptr, false, kNoLora},
    {"max-lora-rank", nullptr, false, kNoLora},
    {"limit-mm-per-prompt", nullptr, false, kNoMultimodal},
    {"mm-processor-kwargs", nullptr, false, kNoMultimodal},
    {"image", nullptr, false, kNoMultimodal},
    {"audio", nullptr, false, kNoMultimodal},
    {"video", nullptr, false, kNoMultimodal},
    {"speculative-config", nullptr, false, kNoSpeculation},
    {"speculative-model", nullptr, false, kNoSpeculation},
    {"num-speculative-tokens", nullptr, false, kNoSpeculation},
    {"gpu-memory-utilization", nullptr, false, kNoGpu},
    {"enforce-eager", nullptr, false, kNoGpu},
    {"trust-remote-code", nullptr, false, "Duet runs no code from a model's directory"},
};
// Dashes and underscores mean the same.
bool same_name(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](char x, char y) { return (x == '_' ? '-' : x) == (y == '_' ? '-' : y); });
}

std::vector<FlagSpec> all_rows() {
  std::vector<FlagSpec> rows;
  for (const auto part :
       {prompt_flags(), model_flags(), bench_flags(), load_flags(), serve_flags(), report_flags()})
    rows.insert(rows.end(), part.begin(), part.end());
  return rows;
}

}  // namespace

std::span<const FlagSpec> flag_table() {
  static const std::vector<FlagSpec> kAll = all_rows();
  return kAll;
}
std::span<const PlainVariable> plain_variables() {
  return kPlain;
}

const FlagSpec* find_flag(std::string_view name) {
  for (const FlagSpec& flag : flag_table()) {
    if (same_name(flag.name, name)) return &flag;
  }
  return nullptr;
}

std::string flag_variable(const FlagSpec& flag) {
  std::string variable = "DUET_";
  for (const char* c = flag.name; *c != '\0'; ++c) {
    variable += *c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(*c)));
  }
  return variable;
}

std::vector<std::string> flag_choices(const FlagSpec& flag) {
  std::vector<std::string> choices;
  std::string_view rest = flag.value;
  while (true) {
    const size_t bar = rest.find('|');
    choices.emplace_back(rest.substr(0, bar));
    if (bar == std::string_view::npos) return choices;
    rest.remove_prefix(bar + 1);
  }
}

const RefusedFlag* find_refused(std::string_view name) {
  for (const RefusedFlag& refused : kRefused) {
    if (same_name(refused.name, name)) return &refused;
  }
  return nullptr;
}

const IgnoredFlag* find_ignored(std::string_view name) {
  for (const IgnoredFlag& ignored : ignored_flags()) {
    if (same_name(ignored.name, name)) return &ignored;
  }
  return nullptr;
}

const char* refused_value(std::string_view flag, std::string_view value) {
  if (flag == "comm-dtype" && value == "int8")
    return "int8 on the wire is not supported yet; use bf16 or f32";
  if (flag == "quantization" && (value == "fp8" || value == "compressed-tensors" || value == "ascend")) {
    return "a checkpoint in that format runs as it is, without the flag; w8a8 makes int8 weights from any";
  }
  if (flag == "quantization") return "only w8a8 is made while loading";
  if (flag == "kv-cache-dtype" && value.starts_with("fp8"))
    return "a cache of fp8 is not supported; int8 takes as much memory and is closer";
  if (flag == "kv-cache-dtype") return "the cache has the type of --dtype, or int8";
  if (flag == "load-format" && value == "gguf") return "GGUF files are not supported; use safetensors";
  if (flag == "distributed-executor-backend" && (value == "ray" || value == "uni")) {
    return "Duet's ranks are threads of one process or MPI processes";
  }
  return nullptr;
}

}  // namespace duet
