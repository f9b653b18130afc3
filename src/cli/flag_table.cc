#include "cli/flag_table.h"

#include <algorithm>
#include <cctype>

namespace duet {
namespace {

// Who takes what: flags of loading and running a model go to every verb that runs one, those of its
// size also to inspect.
constexpr uint32_t kRun = kGenerate | kLogits;
constexpr uint32_t kModel = kRun | kInspect;

constexpr const char* kPrompts = "What goes in and out";
constexpr const char* kSampling = "Sampling";
constexpr const char* kLoading = "Model";
constexpr const char* kRanks = "Ranks and communication";
constexpr const char* kOverlap = "Dual-batch overlap";
constexpr const char* kMemory = "Scheduling and memory";
constexpr const char* kReports = "Reports";

constexpr double kBig = 2147483647.0;

constexpr FlagSpec kFlags[] = {
    {"prompt", FlagType::kText, "TEXT...", "", kPrompts, kGenerate,
     "One or more prompts. In the variable: one prompt per line.", 0, 0, true, true},
    {"prompts", FlagType::kText, "FILE", "", kPrompts, kRun,
     "Prompts from a file: FILE.txt has one per line (blank lines are skipped); a line of FILE.jsonl gives "
     "\"prompt\", \"prompt_token_ids\" or \"messages\"."},
    {"prompt-token-ids", FlagType::kIdList, "IDS", "", kPrompts, kRun,
     "A prompt as token ids, separated by commas: 0,5,7. Needs no tokenizer. Can be given several times.", 0,
     0, true},
    {"input", FlagType::kText, "FILE", "", kPrompts, kTokenize,
     "Lines of JSON: {\"text\": ...} or {\"messages\": [...], \"add_generation_prompt\": true}."},
    {"output", FlagType::kText, "FILE", "", kPrompts, kRun | kTokenize | kTraceChart,
     "Where the result goes: .jsonl for generate and tokenize (\"-\" is standard output), .safetensors for "
     "logits."},
    {"chat", FlagType::kBool, "", "off", kPrompts, kGenerate,
     "Take each text prompt as a user's message and put it through the chat template."},
    {"add-special-tokens", FlagType::kBool, "", "off", kPrompts, kTokenize,
     "Add what the tokenizer adds to a plain prompt (BOS)."},
    {"chunk", FlagType::kInt, "N", "0", kPrompts, kLogits,
     "Prefill each prompt in chunks of N tokens; 0: whole.", 0, kBig},
    {"decode", FlagType::kBool, "", "off", kPrompts, kLogits,
     "Feed the tokens one by one through the decode path."},

    {"max-tokens", FlagType::kInt, "N", "16", kSampling, kGenerate, "Tokens to generate, at most.", 1, kBig},
    {"min-tokens", FlagType::kInt, "N", "0", kSampling, kGenerate,
     "Neither EOS nor a stop ends a continuation before it has N tokens.", 0, kBig},
    {"temperature", FlagType::kNumber, "T", "", kSampling, kGenerate,
     "0 is greedy. Default: the model's generation_config.json, else 1.", 0, 1e6},
    {"top-p", FlagType::kNumber, "P", "", kSampling, kGenerate,
     "Sample from the likeliest tokens that together have probability P. Default: the model's, else 1.", 0,
     1},
    {"top-k", FlagType::kInt, "K", "", kSampling, kGenerate,
     "Sample from the K likeliest tokens; 0 or -1: all. Default: the model's, else all.", -1, kBig},
    {"min-p", FlagType::kNumber, "P", "", kSampling, kGenerate,
     "Drop tokens less likely than P times the likeliest. Default: the model's, else 0.", 0, 1},
    {"n", FlagType::kInt, "N", "1", kSampling, kGenerate, "Continuations per prompt.", 1, 1024},
    {"stop", FlagType::kText, "TEXT", "", kSampling, kGenerate,
     "End a continuation where TEXT appears; TEXT itself is cut off. Can be given several times. In the "
     "variable: one per line.",
     0, 0, true},
    {"stop-token-ids", FlagType::kIdList, "IDS", "", kSampling, kGenerate,
     "End a continuation at any of these tokens, separated by commas.", 0, 0, true},
    {"ignore-eos", FlagType::kBool, "", "off", kSampling, kGenerate,
     "Go on after the end-of-sequence token."},
    {"logprobs", FlagType::kInt, "K", "", kSampling, kGenerate,
     "Write the log-probability of each token and of the K likeliest at its place.", 0, 1024},
    {"generation-config", FlagType::kChoice, "auto|vllm", "auto", kSampling, kGenerate,
     "Where sampling defaults come from: the model's generation_config.json, or vLLM's neutral ones (its "
     "end-of-sequence tokens count either way)."},

    {"tokenizer", FlagType::kText, "DIR", "", kLoading, kRun | kTokenize,
     "Directory of tokenizer.json; default: the model's."},
    {"chat-template", FlagType::kText, "FILE", "", kLoading, kGenerate | kLogits | kTokenize,
     "A Jinja chat template; default: the tokenizer's own."},
    {"no-control-tokens-in-content", FlagType::kBool, "", "off", kLoading, kGenerate | kLogits | kTokenize,
     "Text typed inside a chat message stays text, even where it spells a control token. Default: as Hugging "
     "Face does, it becomes one."},
    {"load-format", FlagType::kChoice, "auto|dummy", "auto", kLoading, kModel,
     "dummy: seeded random weights from config.json alone, the same for every number of ranks."},
    {"dtype", FlagType::kChoice, "auto|float32|bfloat16|half", "auto", kLoading, kModel,
     "Weights, KV cache and inputs of matrix products; sums are float32 always. auto: what config.json "
     "says."},
    {"seed", FlagType::kInt, "N", "0", kLoading, kRun,
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
    {"enable-expert-parallel", FlagType::kBool, "", "off", kRanks, kModel,
     "Place whole experts on ranks; without it every expert is cut over all ranks."},
    {"expert-path", FlagType::kChoice, "all-reduce|all-to-all", "all-reduce", kRanks, kModel,
     "How tokens reach experts: replicated and summed, or sent to the experts' owners and back (implies "
     "--enable-expert-parallel)."},
    {"comm-dtype", FlagType::kChoice, "bf16|f32", "bf16", kRanks, kModel, "What activations travel as."},
    {"link-bandwidth", FlagType::kBandwidth, "RATE", "", kRanks, kRun,
     "Shape the link between thread ranks: 1gbit, 100MB/s."},
    {"link-latency", FlagType::kDuration, "TIME", "", kRanks, kRun, "The same link's latency: 50us, 1ms."},
    {"threads", FlagType::kInt, "N", "0", kRanks, kModel,
     "Threads per rank; 0: this machine's cores divided by its ranks (under MPI, all that a process is bound "
     "to).",
     0, 4096},

    {"dbo", FlagType::kChoice, "off|on", "off", kOverlap, kModel,
     "Split steps into micro-batches: while one computes, the other communicates."},
    {"enable-dbo", FlagType::kBool, "", "off", kOverlap, kModel,
     "The same as --dbo on. --enable-dbo=false is --dbo off.", 0, 0, false, false, nullptr,
     "VLLM_ASCEND_ENABLE_DBO"},
    {"micro-batches", FlagType::kInt, "N", "2", kOverlap, kModel, "Micro-batches of a split step.", 1, 64},
    {"dbo-prefill-token-threshold", FlagType::kInt, "N", "512", kOverlap, kRun,
     "A step with prompt tokens is split from N tokens on.", 0, kBig},
    {"dbo-decode-token-threshold", FlagType::kInt, "N", "32", kOverlap, kRun,
     "A step of decoding alone is split from N tokens on.", 0, kBig},
    {"dbo-imbalance", FlagType::kNumber, "X", "0.1", kOverlap, kRun,
     "Largest relative difference in cost of the micro-batches when a step is split by whole requests; "
     "beyond "
     "it a request is cut.",
     0, 1},
    {"split-at", FlagType::kInt, "N", "0", kOverlap, kLogits,
     "The first micro-batch gets N tokens of every batch, thresholds ignored; 0: as the cost says.", 0, kBig},

    {"max-num-seqs", FlagType::kInt, "N", "256", kMemory, kModel, "Requests in one step, at most.", 1, 65536},
    {"max-num-batched-tokens", FlagType::kInt, "N", "2048", kMemory, kModel, "Tokens in one step, at most.",
     1, 1048576},
    {"block-size", FlagType::kInt, "N", "16", kMemory, kModel, "Tokens per block of the KV cache.", 1, 4096},
    {"kv-cache-memory", FlagType::kBytes, "SIZE", "", kMemory, kModel,
     "Memory for each rank's KV cache: 512MiB, 4GiB. Default: enough for the flags above, within the "
     "machine's memory."},

    {"trace", FlagType::kText, "FILE", "", kReports, kGenerate,
     "Write every stage's times as Chrome JSON; open it in Perfetto (ui.perfetto.dev) or read `duet trace "
     "summary FILE`."},
    {"layer", FlagType::kInt, "N", "1", kReports, kTraceChart, "The layer to draw.", 0, kBig},
    {"rank", FlagType::kInt, "R", "0", kReports, kTraceChart, "The rank to draw.", 0, kBig},
    {"json", FlagType::kText, "FILE", "", kReports, kGenerate | kInspect | kTrace | kDoctor,
     "Write the report for machines. \"-\" is standard output."},
    {"mpi", FlagType::kBool, "", "off", kReports, kDoctor,
     "Also measure MPI between two processes of this machine, under mpirun."},
};

constexpr VerbSpec kVerbs[] = {
    {"generate", kGenerate, "MODEL",
     "MODEL (--prompt TEXT... | --prompts FILE | --prompt-token-ids IDS) [flags]", "continue prompts",
     "Loads a Hugging Face directory and continues every prompt. Text goes to standard output, or as lines "
     "of\n"
     "JSON to --output: prompt, prompt_token_ids, text, token_ids, finish_reason, in the order of the input\n"
     "(with --n, one line per continuation, numbered by \"index\"). A report of speed and communication\n"
     "follows on standard error.",
     "duet generate models/kjv-8m --prompt \"In the beginning God\" --max-tokens 40 --temperature 0\n"
     "duet generate models/kjv-8m --prompts models/kjv-8m/prompts.jsonl --tensor-parallel-size 2 --dbo on "
     "\\\n"
     "  --output out.jsonl --trace out.trace.json"},
    {"logits", kLogits, "MODEL",
     "MODEL (--prompts FILE | --prompt-token-ids IDS) --output F.safetensors [flags]",
     "every logit of a prompt, for comparisons",
     "Writes the logits of every position of prompt i as float32 tensor \"logits.<i>\" [tokens, vocab]. The\n"
     "prompts of a file form one batch, in order, up to --max-num-batched-tokens.",
     "duet logits models/kjv-8m --prompt-token-ids 0,1232,261 --output a.safetensors --dtype float32\n"
     "duet logits models/kjv-8m --prompt-token-ids 0,1232,261 --output b.safetensors --dtype float32 \\\n"
     "  -tp 2 --dbo on --split-at 1"},
    {"tokenize", kTokenize, "MODEL", "MODEL --input F.jsonl --output G.jsonl [flags]",
     "text or chat messages to token ids",
     "{\"text\"} becomes {\"ids\", \"decoded\"} (no BOS unless --add-special-tokens);\n"
     "{\"messages\", \"add_generation_prompt\"} becomes {\"text\", \"ids\"}, add_generation_prompt being "
     "false where\n"
     "it is absent. Exactly these fields are written. MODEL may hold nothing but tokenizer files.",
     "echo '{\"text\": \"Hello\"}' > in.jsonl\n"
     "duet tokenize models/kjv-8m --input in.jsonl --output -"},
    {"trace summary", kTrace, "FILE", "FILE [--json FILE]", "add up a trace that generate wrote",
     "Prints time per lane and stage kind, the time the compute lane waited for communication (exposed), "
     "and\n"
     "the hidden share 1 - exposed / communication.",
     "duet trace summary out.trace.json"},
    {"trace chart", kTraceChart, "FILE", "FILE --output F.svg [--layer N] [--rank R]",
     "draw one layer of a trace as a Gantt chart",
     "Draws both lanes of one rank from the beginning of a layer to its end as an SVG: the last step "
     "without\n"
     "overlap, if the trace has one, above the last overlapped steps, on one time scale.",
     "duet trace chart out.trace.json --layer 3 --output layer.svg"},
    {"inspect", kInspect, "MODEL", "MODEL [flags]", "what a model is and what it needs",
     "Architecture, parameters, bytes of the checkpoint and of each rank, KV cache per token, valid numbers "
     "of\n"
     "ranks. Loads nothing; MODEL may be a config.json alone.",
     "duet inspect models/kjv-8m -tp 2"},
    {"doctor", kDoctor, "", "[flags]", "what this machine can do, with advice",
     "CPU level, cores and memory; measured arithmetic, memory bandwidth, and communication between ranks.",
     "duet doctor"},
    {"version", kVersion, "", "", "version and build", "Version, compiler, CPU level and MPI library.",
     "duet version"},
    {"internal", kInternal, "WHAT", "flags-markdown", "for the project's own use",
     "flags-markdown: the page docs/flags.md.", "duet internal flags-markdown > docs/flags.md", true},
};

constexpr PlainVariable kPlain[] = {
    {"DUET_CPU", "Use a lower CPU level than the machine has: portable, avx2, avx512, avx512bf16."},
    {"DUET_LOG", "Least important lines shown on standard error: debug, info, warning, error, off."},
};

constexpr const char* kNoPipeline = "Duet splits a model over ranks by tensors and experts only";
constexpr const char* kNoLora = "LoRA adapters are not supported; merge the adapter into the weights first";
constexpr const char* kNoMultimodal = "multimodal inputs are not supported; Duet takes text and token ids";
constexpr const char* kNoQuant = "quantised weights are not supported yet; use a f32, bf16 or f16 checkpoint";
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
    {"quantization", "-q", false, kNoQuant},
    {"speculative-config", nullptr, false, kNoSpeculation},
    {"speculative-model", nullptr, false, kNoSpeculation},
    {"num-speculative-tokens", nullptr, false, kNoSpeculation},
    {"gpu-memory-utilization", nullptr, false, kNoGpu},
    {"enforce-eager", nullptr, false, kNoGpu},
    {"hosts", nullptr, false, "start the ranks with mpirun or srun; Duet finds itself under it"},
    {"trust-remote-code", nullptr, false, "Duet runs no code from a model's directory"},
};

// Dashes and underscores mean the same.
bool same_name(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](char x, char y) { return (x == '_' ? '-' : x) == (y == '_' ? '-' : y); });
}

}  // namespace

std::span<const FlagSpec> flag_table() {
  return kFlags;
}
std::span<const VerbSpec> verb_table() {
  return kVerbs;
}
std::span<const PlainVariable> plain_variables() {
  return kPlain;
}

const FlagSpec* find_flag(std::string_view name) {
  for (const FlagSpec& flag : kFlags) {
    if (same_name(flag.name, name)) return &flag;
  }
  return nullptr;
}

const VerbSpec* find_verb(std::string_view name) {
  for (const VerbSpec& verb : kVerbs) {
    if (verb.name == name) return &verb;
  }
  return nullptr;
}

std::vector<std::string> verb_names() {
  std::vector<std::string> names;
  for (const VerbSpec& verb : kVerbs) {
    if (!verb.hidden) names.emplace_back(verb.name);
  }
  return names;
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

const char* refused_value(std::string_view flag, std::string_view value) {
  if (flag == "dbo" && value == "auto")
    return "deciding by measurement is not supported yet; choose off or on";
  if (flag == "comm-dtype" && value == "int8")
    return "int8 on the wire is not supported yet; use bf16 or f32";
  if (flag == "load-format" && value == "gguf") return "GGUF files are not supported; use safetensors";
  if (flag == "distributed-executor-backend" && (value == "ray" || value == "mp" || value == "uni")) {
    return "Duet's ranks are threads of one process or MPI processes";
  }
  return nullptr;
}

}  // namespace duet
