// Flags of the HTTP server, and those of vLLM's that it accepts without effect.
#include "cli/flag_rows.h"

namespace duet {
namespace {

constexpr FlagSpec kServeRows[] = {
    {"host", FlagType::kText, "ADDRESS", "127.0.0.1", kServing, kServe | kBenchServe,
     "Address to listen on (bench serve: of the server); 0.0.0.0 or :: is every interface."},
    {"port", FlagType::kInt, "N", "8000", kServing, kServe | kBenchServe,
     "Port to listen on (bench serve: of the server); 0: any free one.", 0, 65535},
    {"served-model-name", FlagType::kText, "NAME...", "", kServing, kServe | kBenchServe,
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
    {"reasoning-parser", FlagType::kChoice, "deepseek_r1|qwen3", "", kServing, kServe,
     "Chats of models that write <think>…</think> first: that part comes as reasoning_content. deepseek_r1: "
     "thinks from the start; qwen3: only behind its own <think>."},
    {"allowed-origins", FlagType::kText, "LIST", "[\"*\"]", kServing, kServe,
     "Origins whose pages may call the server (CORS), as a JSON array."},
    {"allow-credentials", FlagType::kBool, "", "off", kServing, kServe,
     "Let such pages send credentials (CORS)."},
    {"ssl-certfile", FlagType::kText, "FILE", "", kServing, kServe,
     "Serve HTTPS with this certificate (PEM)."},
    {"ssl-keyfile", FlagType::kText, "FILE", "", kServing, kServe, "The certificate's key (PEM)."},
    {"ssl-ca-certs", FlagType::kText, "FILE", "", kServing, kServe,
     "Clients must show a certificate that one of these signed (PEM)."},
    {"stall-timeout", FlagType::kNumber, "SECONDS", "60", kServing, kServe,
     "When no rank finishes a stage of a step for so long, running requests get an error, the log names the "
     "stages that hang, and the server ends with exit code 1. 0: never.",
     0, 86400},
    {"shutdown-timeout", FlagType::kNumber, "SECONDS", "30", kServing, kServe,
     "On SIGTERM or SIGINT, requests under way may go on for so long; what is left ends with finish reason "
     "\"abort\".",
     0, 86400},
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
    {"max-seq-len-to-capture", true, kNoGraph},
    {"cuda-graph-sizes", true, kNoGraph},
    {"device", true, kNoDevice},
    {"disable-frontend-multiprocessing", false, kAlwaysSo},
    {"max-parallel-loading-workers", true, "ranks load their shards at once"},
    {"disable-tqdm", false, "progress is shown on a terminal only"},
    {"skip-chat-template", false, "prompts are sent as they are"},
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

}  // namespace

std::span<const FlagSpec> serve_flags() {
  return kServeRows;
}
std::span<const IgnoredFlag> ignored_flags() {
  return kIgnored;
}

}  // namespace duet
