#include "cli/options.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>

#include "cli/flags.h"
#include "cli/usage_error.h"
#include "comm/mpi_transport.h"

namespace duet {

int mpi_rank_from_env() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID"}) {
    if (const char* value = std::getenv(name)) return std::atoi(value);
  }
  return 0;
}

std::string overlap_mode(const Flags& flags) {
  using Source = Flags::Source;
  const Source dbo = flags.source("dbo");
  const Source enable = flags.source("enable-dbo");
  const std::string mode = flags.text("dbo");
  const bool enable_on = flags.boolean("enable-dbo");
  const std::string enabled = enable_on ? "on" : "off";
  if (enable == Source::kDefault) return mode;
  if (dbo == Source::kDefault) return enabled;
  if (dbo != enable) return dbo == Source::kCommandLine ? mode : enabled;
  if ((mode != "off") == enable_on) return mode;  // auto is a way of being on
  if (dbo == Source::kEnvironment) return "off";
  throw UsageError(fmt::format("--dbo {} and --enable-dbo{} contradict each other; give one of them", mode,
                               enable_on ? "" : "=false"));
}

bool is_mpi_worker() {
  return launched_under_mpi() && mpi_rank_from_env() != 0;
}

RankPlace place_ranks(const Flags& flags) {
  RankPlace place;
  place.ranks = static_cast<int>(flags.integer("tensor-parallel-size"));
  const std::string backend = flags.text("distributed-executor-backend");
  const bool launched = launched_under_mpi();
  const int world = launched ? mpi_world_size_from_env() : 1;
  if (!launched || world <= 1) {
    if (backend == "mpi") {
      if (!have_mpi()) {
        throw UsageError(fmt::format(
            "{} mpi: this build of duet has no MPI; use threads, or build with DUET_MPI=openmpi or mpich",
            flags.shown("distributed-executor-backend")));
      }
      if (place.ranks > world) {
        throw UsageError(
            fmt::format("{0} mpi needs {1} processes and this is one; start it as: mpirun -n {1} --bind-to "
                        "none duet {2} ...",
                        flags.shown("distributed-executor-backend"), place.ranks, flags.verb().name));
      }
      place.mpi = true;
    }
    return place;
  }
  if (backend == "threads") {
    throw UsageError(fmt::format(
        "{} threads, but mpirun started {} processes; drop the flag, or start duet without mpirun",
        flags.shown("distributed-executor-backend"), world));
  }
  if (flags.given("tensor-parallel-size") && place.ranks != world) {
    throw UsageError(
        fmt::format("{} is {}, but mpirun started {} processes; make them equal, or drop the flag",
                    flags.shown("tensor-parallel-size"), place.ranks, world));
  }
  if (!have_mpi()) {
    throw UsageError(
        fmt::format("started as one of {} MPI processes, but this build of duet has no MPI; build with "
                    "DUET_MPI=openmpi or mpich",
                    world));
  }
  place.ranks = world;
  place.mpi = true;
  place.worker = is_mpi_worker();
  return place;
}

LlmOptions llm_options(const Flags& flags) {
  const RankPlace place = place_ranks(flags);
  LlmOptions o;
  o.model = flags.positional();
  o.tokenizer = flags.text("tokenizer");
  o.chat_template = flags.text("chat-template");
  o.load_format = flags.text("load-format");
  o.seed = static_cast<uint64_t>(flags.integer("seed"));
  o.dummy_seed = o.seed;
  o.dtype = flags.text("dtype");
  o.quantization = flags.text("quantization");
  o.float_head = flags.boolean("float-head");
  if (o.float_head && o.quantization.empty()) {
    throw UsageError(
        fmt::format("{} goes with {} w8a8", flags.shown("float-head"), flags.shown("quantization")));
  }
  o.kv_cache_dtype = flags.text("kv-cache-dtype");
  o.tensor_parallel_size = place.ranks;
  o.distributed_executor_backend = place.mpi ? "mpi" : "threads";
  o.comm_transport = flags.text("comm-transport");
  o.threads = static_cast<int>(flags.integer("threads"));
  o.expert_path = flags.text("expert-path");
  o.enable_expert_parallel = flags.boolean("enable-expert-parallel");
  o.comm_dtype = flags.text("comm-dtype");
  o.link_bandwidth = flags.text("link-bandwidth");
  o.link_latency = flags.text("link-latency");
  if (place.mpi && (flags.given("link-bandwidth") || flags.given("link-latency"))) {
    throw UsageError(
        "--link-bandwidth and --link-latency shape the link between thread ranks; MPI has a real one");
  }
  o.dbo = overlap_mode(flags);
  o.micro_batches = static_cast<int>(flags.integer("micro-batches"));
  o.dbo_prefill_token_threshold = flags.integer("dbo-prefill-token-threshold");
  o.dbo_decode_token_threshold = flags.integer("dbo-decode-token-threshold");
  o.dbo_imbalance = flags.number("dbo-imbalance");
  if (flags.given("dbo-cost-cache")) o.dbo_cost_cache = flags.text("dbo-cost-cache");
  if (flags.given("split-at")) o.split_at = flags.integer("split-at");
  o.max_num_batched_tokens = flags.integer("max-num-batched-tokens");
  o.max_num_seqs = flags.integer("max-num-seqs");
  if (flags.given("max-model-len")) o.max_model_len = flags.integer("max-model-len");
  o.block_size = static_cast<int>(flags.integer("block-size"));
  o.kv_cache_memory = flags.text("kv-cache-memory");
  o.generation_config = flags.text("generation-config");
  o.control_tokens_in_content = !flags.boolean("no-control-tokens-in-content");
  o.trace = flags.given("trace");
  return o;
}

bool lacks_tokenizer(const LlmOptions& options) {
  const std::filesystem::path dir = options.tokenizer.empty() ? options.model : options.tokenizer;
  std::error_code ignored;
  return !std::filesystem::exists(dir / "tokenizer.json", ignored);
}

SamplingParams sampling_params(const Flags& flags) {
  SamplingParams p;
  if (flags.given("temperature")) p.temperature = flags.number("temperature");
  if (flags.given("top-p")) p.top_p = flags.number("top-p");
  if (flags.given("top-k")) p.top_k = static_cast<int>(flags.integer("top-k"));
  if (flags.given("min-p")) p.min_p = flags.number("min-p");
  p.n = static_cast<int>(flags.integer("n"));
  p.max_tokens = static_cast<int>(flags.integer("max-tokens"));
  p.min_tokens = static_cast<int>(flags.integer("min-tokens"));
  if (p.min_tokens > p.max_tokens) {
    throw UsageError(fmt::format("{} is {}, more than {} ({})", flags.shown("min-tokens"), p.min_tokens,
                                 flags.shown("max-tokens"), p.max_tokens));
  }
  if (p.top_p && *p.top_p <= 0)
    throw UsageError(fmt::format("{} is 0; expected more than 0", flags.shown("top-p")));
  p.stop = flags.list("stop");
  for (const std::string& text : p.stop) {
    if (text.empty()) throw UsageError(fmt::format("{} is empty", flags.shown("stop")));
  }
  for (const std::string& ids : flags.list("stop-token-ids")) {
    for (const int32_t id : parse_token_ids(ids, flags.shown("stop-token-ids")))
      p.stop_token_ids.push_back(id);
  }
  p.ignore_eos = flags.boolean("ignore-eos");
  if (flags.given("logprobs")) p.logprobs = static_cast<int>(flags.integer("logprobs"));
  return p;
}

}  // namespace duet
