// Flags of loading and running a model: every verb that runs one takes them.
#include "cli/flag_rows.h"

namespace duet {
namespace {

constexpr FlagSpec kModelRows[] = {
    {"tokenizer", FlagType::kText, "DIR", "", kLoading,
     kGenerate | kLogits | kTokenize | kPerplexity | kServe | kBenchServe | kBenchThroughput | kBenchLatency,
     "Directory of tokenizer.json; default: the model's."},
    {"chat-template", FlagType::kText, "FILE", "", kLoading, kGenerate | kLogits | kTokenize | kServe,
     "A Jinja chat template; default: the tokenizer's own."},
    {"no-control-tokens-in-content", FlagType::kBool, "", "off", kLoading,
     kGenerate | kLogits | kTokenize | kServe,
     "Text typed inside a chat message stays text, even where it spells a control token. Default: as Hugging "
     "Face does, it becomes one."},
    {"load-format", FlagType::kChoice, "auto|dummy", "auto", kLoading, kModel,
     "dummy: seeded random weights from config.json alone, the same for every number of ranks."},
    {"dtype", FlagType::kChoice, "auto|float32|bfloat16|half", "auto", kLoading, kModel,
     "Weights, KV cache and inputs of matrix products; sums are float32 always. auto: what config.json "
     "says."},
    {"quantization", FlagType::kChoice, "w8a8", "", kLoading, kModel,
     "Make int8 weights (one scale per output channel) with int8 inputs (one per token) from any checkpoint "
     "while loading; gate and embedding stay as they are. Default: as the checkpoint stores them.",
     0, 0, false, false, "-q"},
    {"float-head", FlagType::kBool, "", "off", kLoading, kModel,
     "With --quantization: kv_b_proj and the head stay in floating point. Default: int8 weights with "
     "inputs of 16 bits."},
    {"seed", FlagType::kInt, "N", "0", kLoading, kRun | kBenchServe,
     "Seed of sampling (each request derives its own from it) and of dummy weights.", 0, 9007199254740992.0},
    {"max-model-len", FlagType::kInt, "N", "", kLoading, kModel,
     "Longest sequence, prompt and continuation together. Default: the model's.", 1, kBig},

    {"tensor-parallel-size", FlagType::kInt, "N", "1", kRanks, kModel,
     "Ranks that share the model. Without mpirun they are threads of this process; under mpirun the default "
     "is "
     "the number of processes.",
     1, 4096, false, false, "-tp"},
    {"distributed-executor-backend", FlagType::kChoice, "threads|mpi", "", kRanks, kRun,
     "Ranks as threads of one process, or as processes started by mpirun or srun. Default: mpi when started "
     "so, "
     "else threads."},
    {"hosts", FlagType::kText, "LIST", "", kRanks, kRun | kDoctor,
     "Start the ranks on these hosts, as mpirun does: a,b is a rank on each (or equal shares of "
     "--tensor-parallel-size), a:2,b:2 two."},
    {"mpirun-args", FlagType::kText, "ARGS", "", kRanks, kRun | kDoctor,
     "More arguments for the mpirun of --hosts, split as a shell splits them: --mpirun-args=\"--mca btl "
     "tcp,self\". A binding among them replaces Duet's own."},
    {"print-launch", FlagType::kBool, "", "off", kRanks, kRun,
     "Print the mpirun command of --hosts instead of running it."},
    {"comm-transport", FlagType::kChoice, "auto|mpi|tcp", "auto", kRanks, kRun,
     "How ranks that mpirun or srun started exchange data: by MPI, or by TCP connections that take less time "
     "of "
     "the computing cores. auto: tcp between several hosts without a fast fabric such as InfiniBand, else "
     "mpi."},
    {"enable-expert-parallel", FlagType::kBool, "", "off", kRanks, kModel,
     "Place whole experts on ranks; without it every expert is cut over all ranks."},
    {"expert-path", FlagType::kChoice, "all-reduce|all-to-all", "all-reduce", kRanks, kModel,
     "How tokens reach experts: replicated and summed, or sent to the experts' owners and back (implies "
     "--enable-expert-parallel)."},
    {"comm-dtype", FlagType::kChoice, "bf16|f32", "bf16", kRanks, kModel, "What activations travel as."},
    {"link-bandwidth", FlagType::kBandwidth, "RATE", "", kRanks, kRun,
     "Shape the link between thread ranks: 1gbit, 100MB/s."},
    {"link-latency", FlagType::kDuration, "TIME", "", kRanks, kRun, "The same link's latency: 50us, 1ms."},
    {"threads", FlagType::kInt, "N", "0", kRanks, kModel | kBenchKernels,
     "Threads per rank; 0: this machine's cores divided by its ranks (under MPI, all that a process is bound "
     "to).",
     0, 4096},

    {"dbo", FlagType::kChoice, "off|on|auto", "auto", kOverlap, kModel,
     "Split steps into micro-batches: while one computes, the other communicates. on: every step from the "
     "thresholds on; auto: where measured costs say that it is faster."},
    {"enable-dbo", FlagType::kBool, "", "off", kOverlap, kModel,
     "The same as --dbo on. --enable-dbo=false is --dbo off.", 0, 0, false, false, nullptr,
     "VLLM_ASCEND_ENABLE_DBO"},
    {"micro-batches", FlagType::kInt, "N", "0", kOverlap, kModel,
     "Micro-batches of a split step; 0: as many as are predicted to be fastest, up to 6.", 0, 64},
    {"dbo-prefill-token-threshold", FlagType::kInt, "N", "512", kOverlap, kRun,
     "With --dbo on, a step with prompt tokens is split from N tokens on.", 0, kBig},
    {"dbo-decode-token-threshold", FlagType::kInt, "N", "32", kOverlap, kRun,
     "With --dbo on, a step of decoding alone is split from N tokens on.", 0, kBig},
    {"dbo-imbalance", FlagType::kNumber, "X", "0.1", kOverlap, kRun,
     "Largest relative difference in cost of the micro-batches when a step is split by whole requests; "
     "beyond "
     "it a request is cut.",
     0, 1},
    {"dbo-cost-cache", FlagType::kText, "DIR|off", "auto", kOverlap, kRun & ~(kBenchOverlap | kBenchEngine),
     "Where measured costs are kept between starts; off: measured at every start. auto: duet in "
     "$XDG_CACHE_HOME, else in ~/.cache."},
    {"split-at", FlagType::kInt, "N", "0", kOverlap, kLogits,
     "The first micro-batch gets N tokens of every batch, thresholds ignored; 0: as the cost says.", 0, kBig},

    {"max-num-seqs", FlagType::kInt, "N", "256", kMemory, kModel, "Requests in one step, at most.", 1, 65536},
    {"max-num-batched-tokens", FlagType::kInt, "N", "2048", kMemory, kModel, "Tokens in one step, at most.",
     1, 1048576},
    {"kv-cache-dtype", FlagType::kChoice, "auto|int8", "auto", kMemory, kModel,
     "int8: a token's latent in 8 bits (a scale for each 128 of it, the rotated part in 13): 57 % "
     "of bfloat16's memory, less to compute for long contexts. DeepSeek's models only. auto: as --dtype."},
    {"block-size", FlagType::kInt, "N", "16", kMemory, kModel, "Tokens per block of the KV cache.", 1, 4096},
    {"kv-cache-memory", FlagType::kBytes, "SIZE", "", kMemory, kModel,
     "Memory for each rank's KV cache: 512MiB, 4GiB. Default: enough for the flags above, within the "
     "machine's memory."},
};

}  // namespace

std::span<const FlagSpec> model_flags() {
  return kModelRows;
}

}  // namespace duet
