// Flags of benchmarks of steps, of quality and formats.
#include "cli/flag_rows.h"

namespace duet {
namespace {

constexpr FlagSpec kBenchRows[] = {
    {"tokens", FlagType::kText, "LIST", "2048", kSteps, kBenchOverlap,
     "Tokens of a step (decode: sequences; mixed: prompt tokens), several separated by commas."},
    {"phase", FlagType::kChoice, "prefill|decode|mixed", "prefill", kSteps, kBenchOverlap, "Kind of step."},
    {"sequences", FlagType::kInt, "N", "8", kSteps, kBenchOverlap, "Sequences that share the prompt tokens.",
     1, 65536},
    {"decodes", FlagType::kInt, "N", "64", kSteps, kBenchOverlap, "Sequences that decode in a mixed step.", 1,
     65536},
    {"context", FlagType::kInt, "N", "", kSteps, kBenchOverlap | kBenchEngine,
     "Tokens before each sequence's first. Default: 256 for bench overlap's decode and mixed, else 0.", 0,
     kBig},
    {"prompt-tokens", FlagType::kInt, "N", "512", kSteps, kBenchEngine,
     "Tokens of the prompt whose prefill is measured; 0: none.", 0, 1048576},
    {"gen-tokens", FlagType::kInt, "N", "128", kSteps, kBenchEngine,
     "Tokens that each sequence generates; 0: none.", 0, 1048576},
    {"batch", FlagType::kText, "LIST", "1", kSteps, kBenchEngine,
     "Sequences that generate together, several numbers separated by commas."},
    {"filter", FlagType::kText, "TEXT", "", kSteps, kBenchKernels,
     "Only cases whose name (\"gemm 512 x 1024 x 1024 bf16\") contains it."},
    {"seconds", FlagType::kNumber, "S", "0.5", kSteps, kBenchKernels, "Time for the runs of a case.", 0.001,
     3600},
    {"repeats", FlagType::kInt, "N", "5", kSteps, kBenchOverlap | kBenchEngine,
     "Times that each way is measured, in turns.", 1, 10000},
    {"virtual-tokens", FlagType::kText, "LIST", "", kSteps, kBenchOverlap,
     "Also predict steps of these sizes in virtual time, from the costs measured, without running them."},
    {"comm-share", FlagType::kText, "LIST", "", kSteps, kBenchOverlap,
     "Between thread ranks: shape the link so that communication takes these shares of a step (0.25,0.5), "
     "one "
     "after the other."},

    {"window", FlagType::kInt, "N", "256", kText, kPerplexity,
     "Tokens that the model sees at once, at least 2.", 1, kBig},
    {"stride", FlagType::kInt, "N", "", kText, kPerplexity,
     "Tokens from one window to the next; a window scores the tokens that the one before did not. Default: "
     "--window.",
     1, kBig},
    {"scheme", FlagType::kChoice, "w8a8|bf16", "w8a8", kText, kQuantize,
     "w8a8: projections in int8 with a scale per output channel, in compressed-tensors' layout; bf16: every "
     "matrix multiplied out."},
};

}  // namespace

std::span<const FlagSpec> bench_flags() {
  return kBenchRows;
}

}  // namespace duet
