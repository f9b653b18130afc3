// Flags of the benchmarks that send or run whole requests: bench serve, throughput and latency. Names,
// meanings and defaults are those of vLLM's.
#include "cli/flag_rows.h"

namespace duet {
namespace {

constexpr uint32_t kDataset = kBenchServe | kBenchThroughput;

constexpr FlagSpec kLoadRows[] = {
    {"backend", FlagType::kChoice, "openai|openai-chat|vllm", "openai", kLoad, kBenchServe,
     "What is asked of the server: completions (vllm is the same) or chat completions."},
    {"base-url", FlagType::kText, "URL", "", kLoad, kBenchServe,
     "The server, as http://host:port or https://…; instead of --host and --port."},
    {"endpoint", FlagType::kText, "PATH", "", kLoad, kBenchServe,
     "Default: /v1/completions, with openai-chat /v1/chat/completions."},
    {"model", FlagType::kText, "NAME", "", kLoad, kBenchServe,
     "The model as requests name it; where it is a directory, the tokenizer's too. Default: the first that "
     "the server lists."},
    {"request-timeout", FlagType::kInt, "SECONDS", "600", kLoad, kBenchServe,
     "A request to which nothing comes for so long has failed.", 1, 86400},
    {"dataset-name", FlagType::kChoice, "random|sharegpt|custom", "random", kLoad, kDataset,
     "Made-up prompts, conversations in ShareGPT's JSON, or lines of {\"prompt\": …}."},
    {"dataset-path", FlagType::kText, "FILE", "", kLoad, kDataset, "The file of sharegpt and custom."},
    {"num-prompts", FlagType::kInt, "N", "1000", kLoad, kDataset, "Requests to send.", 1, 1e7},
    {"random-input-len", FlagType::kInt, "N", "1024", kLoad, kDataset, "Tokens of a random prompt.", 1, 1e7},
    {"random-output-len", FlagType::kInt, "N", "128", kLoad, kDataset, "Tokens of its answer.", 1, 1e7},
    {"random-range-ratio", FlagType::kNumber, "R", "0", kLoad, kDataset,
     "Both lengths are uniform within 1 - R and 1 + R times what is asked for.", 0, 1},
    {"random-prefix-len", FlagType::kInt, "N", "0", kLoad, kDataset,
     "Tokens in front of each random prompt that are the same in all.", 0, 1e7},
    {"sharegpt-output-len", FlagType::kInt, "N", "", kLoad, kDataset,
     "Tokens of an answer. Default: as many as the file's answer has.", 1, 1e7},
    {"custom-output-len", FlagType::kInt, "N", "256", kLoad, kDataset, "Tokens of an answer.", 1, 1e7},
    {"request-rate", FlagType::kText, "R", "inf", kLoad, kBenchServe,
     "Requests per second, Poisson arrivals; inf: all at once."},
    {"burstiness", FlagType::kNumber, "X", "1", kLoad, kBenchServe,
     "Shape of the gamma distribution of the gaps between requests: below 1 burstier, above 1 more even.",
     1e-3, 1e6},
    {"max-concurrency", FlagType::kInt, "N", "", kLoad, kBenchServe,
     "Requests under way, at most. Default: no limit.", 1, 65536},
    {"num-warmups", FlagType::kInt, "N", "0", kLoad, kBenchServe,
     "Requests that are sent first and not counted, besides the one that tries whether the server answers.",
     0, 1e6},
    {"goodput", FlagType::kText, "NAME:MS...", "", kLoad, kBenchServe,
     "Also count requests per second that keep to these limits: ttft:200 tpot:50 e2el:2000.", 0, 0, true,
     true},
    {"percentile-metrics", FlagType::kText, "LIST", "ttft,tpot,itl", kLoad, kBenchServe,
     "Latencies to report: ttft, tpot, itl, e2el."},
    {"metric-percentiles", FlagType::kText, "LIST", "99", kLoad, kBenchServe,
     "Their percentiles: 50,90,99.9."},
    {"save-result", FlagType::kBool, "", "off", kLoad, kBenchServe,
     "Write the figures as JSON with vLLM's keys."},
    {"save-detailed", FlagType::kBool, "", "off", kLoad, kBenchServe,
     "With --save-result: also every request's lengths, times, text and error."},
    {"result-dir", FlagType::kText, "DIR", "", kLoad, kBenchServe, "Where the JSON file goes."},
    {"result-filename", FlagType::kText, "NAME", "", kLoad, kBenchServe,
     "Default: LABEL-RATEqps-concurrencyN-MODEL-DATE.json."},
    {"label", FlagType::kText, "TEXT", "", kLoad, kBenchServe,
     "Prefix of the file's name. Default: the backend."},

    {"input-len", FlagType::kInt, "N", "32", kLoad, kBenchThroughput | kBenchLatency,
     "Tokens of a prompt; for bench throughput another name of --random-input-len.", 1, 1e7},
    {"output-len", FlagType::kInt, "N", "128", kLoad, kBenchThroughput | kBenchLatency,
     "Tokens of its answer; for bench throughput another name of --random-output-len.", 1, 1e7},
    {"batch-size", FlagType::kInt, "N", "8", kLoad, kBenchLatency, "Prompts that run together.", 1, 65536},
    {"num-iters", FlagType::kInt, "N", "30", kLoad, kBenchLatency, "Times that the batch is run.", 1, 1e6},
    {"num-iters-warmup", FlagType::kInt, "N", "10", kLoad, kBenchLatency,
     "Times that it is run before, not counted.", 0, 1e6},
    {"output-json", FlagType::kText, "FILE", "", kLoad, kBenchThroughput | kBenchLatency,
     "Write the figures as JSON with vLLM's keys."},
};

}  // namespace

std::span<const FlagSpec> load_flags() {
  return kLoadRows;
}

}  // namespace duet
