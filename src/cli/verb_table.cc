// The verbs, as overview and --help show them.
#include "cli/flag_table.h"

namespace duet {
namespace {

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
    {"bench kernels", kBenchKernels, "", "[--filter TEXT] [--threads N] [flags]",
     "every operation's speed, beside the processor's limit",
     "Runs matrix products, experts, attention, norms and the gate in the shapes that models give them, each "
     "held\n"
     "against its oracle first. Prints milliseconds, rate, share of the limit (multiply-adds on registers, "
     "or "
     "a\n"
     "plain read of memory, measured between the runs), and the ratio to OpenBLAS where it does the same and "
     "is\n"
     "installed (one thread). DUET_CPU=avx2 takes a lower level.",
     "duet bench kernels --filter \"gemm 512\" --threads 1"},
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
    {"bench serve", kBenchServe, "", "[--host H --port N | --base-url URL] [flags]",
     "load on an OpenAI server, measured at the client",
     "Sends streamed requests to any OpenAI server and prints throughput, time to first token, per output\n"
     "token and between tokens. Flags, table and JSON are those of vLLM's bench serve. A key is taken from\n"
     "OPENAI_API_KEY.",
     "duet bench serve --port 8000 --dataset-name random --random-input-len 512 --random-output-len 64 \\\n"
     "  --num-prompts 100 --request-rate 5 --max-concurrency 8 --metric-percentiles 90 --ignore-eos"},
    {"bench throughput", kBenchThroughput, "MODEL", "MODEL [--num-prompts N] [flags]",
     "requests and tokens per second, offline",
     "Runs all requests of a dataset at once, without a server. Random weights will do (--load-format "
     "dummy).",
     "duet bench throughput models/kjv-8m --num-prompts 64 --input-len 128 --output-len 64"},
    {"bench latency", kBenchLatency, "MODEL", "MODEL [--batch-size N] [flags]",
     "seconds that one batch of requests takes, offline",
     "Runs the same batch again and again: mean and percentiles of the time from prompts to answers.",
     "duet bench latency models/kjv-8m --batch-size 8 --input-len 32 --output-len 32 --num-iters 5"},
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

}  // namespace

std::span<const VerbSpec> verb_table() {
  return kVerbs;
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

}  // namespace duet
