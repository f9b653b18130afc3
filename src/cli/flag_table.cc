#include "cli/flag_table.h"

#include <algorithm>
#include <cctype>

namespace duet {
namespace {

// Who takes what: flags of loading and running a model go to every verb that runs one, those of its
// size also to inspect.
constexpr uint32_t kRun = kGenerate | kLogits | kBenchOverlap | kBenchEngine | kPerplexity | kServe;
// Those that start mpirun for --hosts.
constexpr uint32_t kLaunch = kRun & ~kServe;
constexpr uint32_t kModel = kRun | kInspect;

constexpr const char* kPrompts = "What goes in and out";
constexpr const char* kSampling = "Sampling";
constexpr const char* kLoading = "Model";
constexpr const char* kRanks = "Ranks and communication";
constexpr const char* kOverlap = "Dual-batch overlap";
constexpr const char* kMemory = "Scheduling and memory";
constexpr const char* kSteps = "Steps to measure";
constexpr const char* kText = "Quality and formats";
constexpr const char* kServing = "Server";
constexpr const char* kReports = "Reports";

constexpr double kBig = 2147483647.0;

constexpr FlagSpec kFlags[] = {
    {"prompt", FlagType::kText, "TEXT...", "", kPrompts, kGenerate,
     "One or more prompts. In the variable: one prompt per line.", 0, 0, true, true},
    {"prompts", FlagType::kText, "FILE", "", kPrompts, kGenerate | kLogits,
     "Prompts from a file: FILE.txt has one per line (blank lines are skipped); a line of FILE.jsonl gives "
     "\"prompt\", \"prompt_token_ids\" or \"messages\"."},
    {"prompt-token-ids", FlagType::kIdList, "IDS", "", kPrompts, kGenerate | kLogits,
     "A prompt as token ids, separated by commas: 0,5,7. Needs no tokenizer. Can be given several times.", 0,
     0, true},
    {"input", FlagType::kText, "FILE", "", kPrompts, kTokenize,
     "Lines of JSON: {\"text\": ...} or {\"messages\": [...], \"add_generation_prompt\": true}."},
    {"output", FlagType::kText, "FILE", "", kPrompts, kGenerate | kLogits | kTokenize | kTraceChart,
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
    {"generation-config", FlagType::kChoice, "auto|vllm", "auto", kSampling, kGenerate | kServe,
     "Where sampling defaults come from: the model's generation_config.json, or vLLM's neutral ones (its "
     "end-of-sequence tokens count either way)."},

    {"tokenizer", FlagType::kText, "DIR", "", kLoading,
     kGenerate | kLogits | kTokenize | kPerplexity | kServe,
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
     "floating point inputs."},
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
    {"hosts", FlagType::kText, "LIST", "", kRanks, kLaunch | kDoctor,
     "Start the ranks on these hosts, as mpirun does: a,b is a rank on each (or equal shares of "
     "--tensor-parallel-size), a:2,b:2 two."},
    {"mpirun-args", FlagType::kText, "ARGS", "", kRanks, kLaunch | kDoctor,
     "More arguments for the mpirun of --hosts, split as a shell splits them: --mpirun-args=\"--mca btl "
     "tcp,self\". A binding among them replaces Duet's own."},
    {"print-launch", FlagType::kBool, "", "off", kRanks, kLaunch,
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
    {"threads", FlagType::kInt, "N", "0", kRanks, kModel,
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
    {"split-at", FlagType::kInt, "N", "0", kOverlap, kLogits,
     "The first micro-batch gets N tokens of every batch, thresholds ignored; 0: as the cost says.", 0, kBig},

    {"max-num-seqs", FlagType::kInt, "N", "256", kMemory, kModel, "Requests in one step, at most.", 1, 65536},
    {"max-num-batched-tokens", FlagType::kInt, "N", "2048", kMemory, kModel, "Tokens in one step, at most.",
     1, 1048576},
    {"block-size", FlagType::kInt, "N", "16", kMemory, kModel, "Tokens per block of the KV cache.", 1, 4096},
    {"kv-cache-memory", FlagType::kBytes, "SIZE", "", kMemory, kModel,
     "Memory for each rank's KV cache: 512MiB, 4GiB. Default: enough for the flags above, within the "
     "machine's memory."},

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

    {"host", FlagType::kText, "ADDRESS", "127.0.0.1", kServing, kServe,
     "Address to listen on; 0.0.0.0 or :: is every interface."},
    {"port", FlagType::kInt, "N", "8000", kServing, kServe, "Port to listen on; 0: any free one.", 0, 65535},
    {"served-model-name", FlagType::kText, "NAME...", "", kServing, kServe,
     "Names that requests may call the model by; the first one is in answers. Default: MODEL as given.", 0, 0,
     true, true},
    {"api-key", FlagType::kText, "KEY", "", kServing, kServe,
     "Requests to /v1 must carry this key (Authorization: Bearer KEY). Can be given several times. In the "
     "variable: one per line.",
     0, 0, true},
    {"enable-prefix-caching", FlagType::kBool, "", "on", kServing, kServe,
     "Prompts that begin like earlier ones start behind the common part."},
    {"prefix-cache-prompt-only", FlagType::kBool, "", "off", kServing, kServe,
     "Prefix hits on prompts only, never on what decoding wrote: no bit of any logit then depends on earlier "
     "requests."},
    {"max-waiting-requests", FlagType::kInt, "N", "1024", kServing, kServe,
     "Requests that wait to be run, at most; further ones get status 429.", 1, kBig},
    {"max-connections", FlagType::kInt, "N", "4096", kServing, kServe,
     "Open connections, at most; further ones get status 503.", 1, 1048576},
    {"max-request-bytes", FlagType::kBytes, "SIZE", "16MiB", kServing, kServe, "Largest body of a request."},
    {"max-logprobs", FlagType::kInt, "K", "20", kServing, kServe, "Most logprobs that a request may ask for.",
     0, 1024},
    {"allowed-origins", FlagType::kText, "LIST", "[\"*\"]", kServing, kServe,
     "Origins whose pages may call the server (CORS), as a JSON array."},
    {"allow-credentials", FlagType::kBool, "", "off", kServing, kServe,
     "Let such pages send credentials (CORS)."},
    {"ssl-certfile", FlagType::kText, "FILE", "", kServing, kServe,
     "Serve HTTPS with this certificate (PEM)."},
    {"ssl-keyfile", FlagType::kText, "FILE", "", kServing, kServe, "The certificate's key (PEM)."},
    {"ssl-ca-certs", FlagType::kText, "FILE", "", kServing, kServe,
     "Clients must show a certificate that one of these signed (PEM)."},
    {"shutdown-timeout", FlagType::kNumber, "SECONDS", "30", kServing, kServe,
     "On SIGTERM or SIGINT, requests under way may go on for so long; what is left ends with finish reason "
     "\"abort\".",
     0, 86400},

    {"trace", FlagType::kText, "FILE", "", kReports, kGenerate,
     "Write every stage's times as Chrome JSON; open it in Perfetto (ui.perfetto.dev) or read `duet trace "
     "summary FILE`."},
    {"layer", FlagType::kInt, "N", "1", kReports, kTraceChart, "The layer to draw.", 0, kBig},
    {"rank", FlagType::kInt, "R", "0", kReports, kTraceChart, "The rank to draw.", 0, kBig},
    {"json", FlagType::kText, "FILE", "", kReports,
     kGenerate | kInspect | kTrace | kDoctor | kBenchOverlap | kBenchEngine | kPerplexity,
     "Write the report for machines. \"-\" is standard output."},
    {"mpi", FlagType::kBool, "", "off", kReports, kDoctor,
     "Also measure MPI between two processes of this machine, under mpirun, or between those of --hosts."},
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
     "  --output out.jsonl --trace out.trace.json\n"
     "duet generate MODEL --prompts FILE.jsonl --output out.jsonl --hosts a,b --dbo on"},
    {"logits", kLogits, "MODEL",
     "MODEL (--prompts FILE | --prompt-token-ids IDS) --output F.safetensors [flags]",
     "every logit of a prompt, for comparisons",
     "Writes the logits of every position of prompt i as float32 tensor \"logits.<i>\" [tokens, vocab]. The\n"
     "prompts of a file form one batch, in order, up to --max-num-batched-tokens.",
     "duet logits models/kjv-8m --prompt-token-ids 0,1232,261 --output a.safetensors --dtype float32\n"
     "duet logits models/kjv-8m --prompt-token-ids 0,1232,261 --output b.safetensors --dtype float32 \\\n"
     "  -tp 2 --dbo on --split-at 1"},
    {"serve", kServe, "MODEL", "MODEL [flags]", "an OpenAI-compatible HTTP server",
     "Serves /v1/completions, /v1/chat/completions, /v1/models, /tokenize, /detokenize, /health, /metrics. "
     "Takes\n"
     "the flags of vLLM's server: those without a meaning on CPUs are accepted, and it says so. Ends with\n"
     "SIGTERM or SIGINT after answering what is under way (docs/serving.md).",
     "duet serve models/kjv-8m --tensor-parallel-size 2 --port 8000\n"
     "curl http://127.0.0.1:8000/v1/models"},
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
    {"bench overlap", kBenchOverlap, "MODEL",
     "MODEL -tp N [--tokens LIST] [--phase prefill|decode|mixed] [flags]",
     "what overlap hides here, and why not more",
     "Runs one kind of step off, split without overlap, on and auto in turns, and prints the speed-up S and "
     "its\n"
     "ideal S*, eta and the hidden fraction h, the communication share, and what kept h from 1 in "
     "milliseconds.\n"
     "Random weights will do (--load-format dummy). Fails when a logit differs by a bit between the ways.",
     "duet bench overlap models/configs/demo.json --load-format dummy -tp 2 --comm-share 0.25,0.5\n"
     "bench/two_hosts.sh 2 400mbit duet bench overlap models/configs/deepseek-678m.json --load-format dummy "
     "\\\n"
     "  --dtype bfloat16 --phase decode --tokens 128,256 --json cases.json"},
    {"bench engine", kBenchEngine, "MODEL",
     "MODEL [--prompt-tokens N] [--gen-tokens N] [--batch LIST] [flags]",
     "tokens per second of prefill and decode",
     "Times whole steps on made-up tokens: one prompt, then sequences that generate together, each token "
     "from "
     "\n"
     "step to step. Mean and standard deviation over the repeats. Random weights will do (--load-format "
     "dummy).",
     "duet bench engine models/configs/deepseek-678m.json --load-format dummy --threads 2 -q w8a8 \\\n"
     "  --batch 1,4,16 --json engine.json"},
    {"eval perplexity", kPerplexity, "MODEL FILE", "MODEL FILE [--window N] [--stride N] [flags]",
     "how well the model predicts a text",
     "Perplexity over the file's tokens in windows (the first token of the first window is not scored), bits "
     "per\n"
     "byte, and tokens per second.",
     "duet eval perplexity models/kjv-8m models/kjv-8m/held_out.txt --dtype float32 -q w8a8"},
    {"quantize", kQuantize, "MODEL OUT", "MODEL OUT [--scheme w8a8|bf16]",
     "write a checkpoint in another format",
     "Reads a directory in any format that Duet loads and writes directory OUT, which appears when it is "
     "complete.\n"
     "Router, embedding, head and kv_b_proj stay in floating point; multi-token-prediction layers are left "
     "out.",
     "duet quantize models/kjv-8m kjv-8m-w8a8 --scheme w8a8"},
    {"inspect", kInspect, "MODEL", "MODEL [flags]", "what a model is and what it needs",
     "Architecture, parameters, bytes of the checkpoint and of each rank, KV cache per token, valid numbers "
     "of\n"
     "ranks. Loads nothing; MODEL may be a config.json alone.",
     "duet inspect models/kjv-8m -tp 2"},
    {"doctor", kDoctor, "", "[flags]", "what this machine can do, with advice",
     "CPU level, cores and memory; measured arithmetic, memory bandwidth, and communication between ranks.",
     "duet doctor\n"
     "duet doctor --mpi --hosts a,b"},
    {"version", kVersion, "", "", "version and build", "Version, compiler, CPU level and MPI library.",
     "duet version"},
    {"internal", kInternal, "WHAT", "flags-markdown", "for the project's own use",
     "flags-markdown: the page docs/flags.md.", "duet internal flags-markdown > docs/flags.md", true},
};

constexpr PlainVariable kPlain[] = {
    {"DUET_CPU", "Use a lower CPU level than the machine has: portable, avx2, avx512, avx512bf16."},
    {"DUET_LOG", "Least important lines shown on standard error: debug, info, warning, error, off."},
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

constexpr const char* kNoDevice = "Duet runs on CPUs; --kv-cache-memory sets the size of the KV cache";
constexpr const char* kNoGraph =
    "steps run as programs of their own (--dbo), there are no graphs to configure";
constexpr const char* kNoCode = "no code from a model's directory is ever run";
constexpr const char* kNoLog = "requests are not logged";
constexpr const char* kAlwaysSo = "it is always so";

constexpr IgnoredFlag kIgnored[] = {
    {"gpu-memory-utilization", true, kNoDevice},
    {"swap-space", true, kNoDevice},
    {"cpu-offload-gb", true, kNoDevice},
    {"enforce-eager", false, kNoGraph},
    {"compilation-config", true, kNoGraph},
    {"additional-config", true, "it configures plug-ins for accelerators"},
    {"trust-remote-code", false, kNoCode},
    {"disable-log-requests", false, kNoLog},
    {"enable-log-requests", false, kNoLog},
    {"disable-log-stats", false, "statistics are at /metrics"},
    {"disable-uvicorn-access-log", false, kNoLog},
    {"uvicorn-log-level", true, "the variable DUET_LOG sets the level"},
    {"enable-chunked-prefill", false, kAlwaysSo},
    {"async-scheduling", false, kAlwaysSo},
    {"disable-custom-all-reduce", false, "collectives are Duet's own"},
    {"enable-prompt-tokens-details", false, kAlwaysSo},
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

const IgnoredFlag* find_ignored(std::string_view name) {
  for (const IgnoredFlag& ignored : kIgnored) {
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
  if (flag == "load-format" && value == "gguf") return "GGUF files are not supported; use safetensors";
  if (flag == "distributed-executor-backend" && (value == "ray" || value == "uni")) {
    return "Duet's ranks are threads of one process or MPI processes";
  }
  return nullptr;
}

}  // namespace duet
