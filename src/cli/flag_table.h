// The one table of flags. CLI11's options, the DUET_* variables, --help and docs/flags.md are all
// made from it (flags.cc, help.cc); a flag that is not here does not exist.
// Always holds: names are unique, and carry vLLM's spelling where they mean the same.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace duet {

enum class FlagType : uint8_t {
  kBool,
  kText,
  kInt,        // within [low, high]
  kNumber,     // within [low, high]
  kChoice,     // one of the names in `value`, separated by '|'
  kBytes,      // "4GiB", "512MiB", plain bytes
  kBandwidth,  // "1gbit", "100MB/s"
  kDuration,   // "50us"
  kIdList,     // "0,5,7"
};

/// Verbs as bits, so that a flag can say who takes it.
enum VerbBit : uint32_t {
  kGenerate = 1u << 0,
  kLogits = 1u << 1,
  kTokenize = 1u << 2,
  kTrace = 1u << 3,
  kInspect = 1u << 4,
  kDoctor = 1u << 5,
  kVersion = 1u << 6,
  kInternal = 1u << 7,  // hidden
  kTraceChart = 1u << 8,
  kBenchOverlap = 1u << 9,
  kBenchEngine = 1u << 10,
  kQuantize = 1u << 11,
  kPerplexity = 1u << 12,
  kServe = 1u << 13,
  kBenchServe = 1u << 14,
  kBenchThroughput = 1u << 15,
  kBenchLatency = 1u << 16,
  kBenchKernels = 1u << 17,
};

struct FlagSpec {
  const char* name;  // without dashes: "tensor-parallel-size"
  FlagType type;
  const char* value;     // hint in help; for kChoice the choices: "off|on"
  const char* fallback;  // the default as shown; "" where there is none
  const char* group;
  uint32_t verbs;
  const char* help;
  double low = 0;
  double high = 0;
  bool repeated = false;            // may be given several times
  bool greedy = false;              // one occurrence takes all words up to the next flag
  const char* alias = nullptr;      // a second spelling, with its dashes: "-tp"
  const char* env_alias = nullptr;  // a second variable
};

struct VerbSpec {
  const char* name;
  uint32_t bit;
  const char* positional;  // "MODEL", "MODEL OUT", "" when none; all are required
  const char* usage;       // after the name
  const char* summary;     // one line
  const char* about;       // a few lines for --help
  const char* example;     // one or more command lines
  bool hidden = false;
};

std::span<const FlagSpec> flag_table();
std::span<const VerbSpec> verb_table();

/// nullptr when there is none. Dashes and underscores are the same.
const FlagSpec* find_flag(std::string_view name);
const VerbSpec* find_verb(std::string_view name);
/// Names of the verbs that are not hidden.
std::vector<std::string> verb_names();

/// "DUET_TENSOR_PARALLEL_SIZE".
std::string flag_variable(const FlagSpec& flag);
/// The names in `value` of a kChoice.
std::vector<std::string> flag_choices(const FlagSpec& flag);

/// Variables that are read but are no flag, with what they do.
struct PlainVariable {
  const char* name;
  const char* help;
};
std::span<const PlainVariable> plain_variables();

/// Flags of vLLM and its relatives that Duet refuses by name.
struct RefusedFlag {
  const char* name;   // without dashes
  const char* alias;  // "-pp", or nullptr
  bool one_is_fine;   // the value 1 means what Duet does anyway
  const char* why;
};
const RefusedFlag* find_refused(std::string_view name);

/// Flags of vLLM's server that `duet serve` accepts although they mean nothing here; it says why.
struct IgnoredFlag {
  const char* name;  // without dashes
  bool takes_value;
  const char* why;
};
const IgnoredFlag* find_ignored(std::string_view name);

/// Why a value that a choice lacks is refused by name ("--dbo auto"), or nullptr.
const char* refused_value(std::string_view flag, std::string_view value);

}  // namespace duet
