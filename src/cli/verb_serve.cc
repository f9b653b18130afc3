// duet serve: an engine behind HTTP, until a signal or the engine's failure ends it.
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <ostream>

#include "base/clock.h"
#include "base/json_text.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/end_signals.h"
#include "cli/flags.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/serve_hosts.h"
#include "cli/usage_error.h"
#include "cli/verbs.h"
#include "engine/engine.h"
#include "engine/options.h"
#include "serve/server.h"

namespace duet {
namespace {

std::vector<std::string> origins_of(const Flags& flags) {
  const std::string text = flags.text("allowed-origins");
  const auto array = try_json(text);
  std::vector<std::string> origins;
  if (array.is_array()) {
    for (const auto& origin : array) {
      if (origin.is_string()) origins.push_back(origin.get<std::string>());
    }
  }
  if (!array.is_array() || origins.size() != array.size()) {
    throw UsageError(fmt::format("{} is \"{}\"; expected a JSON array such as [\"https://a.example\"]",
                                 flags.shown("allowed-origins"), text));
  }
  return origins;
}

ServerOptions server_options(const Flags& flags) {
  ServerOptions o;
  o.http = http_options(flags);
  o.served_names = flags.list("served-model-name");
  if (o.served_names.empty()) o.served_names.push_back(flags.positional());
  o.api_keys = flags.list("api-key");
  o.allowed_origins = origins_of(flags);
  o.allow_credentials = flags.boolean("allow-credentials");
  o.max_waiting = flags.integer("max-waiting-requests");
  o.limits.max_logprobs = static_cast<int>(flags.integer("max-logprobs"));
  o.version = DUET_VERSION;
  if (flags.given("reasoning-parser"))
    o.reasoning =
        flags.text("reasoning-parser") == "qwen3" ? ReasoningStyle::kQwen3 : ReasoningStyle::kDeepSeekR1;
  return o;
}

// Notices when ranks hang: a step that goes on while no stage of it ends.
class Watchdog {
 public:
  Watchdog(const Server& server, double seconds) : server_(server), most_ns_(seconds * 1e9) {}
  bool hangs() {
    const Server::Pulse pulse = server_.pulse();
    if (pulse.step_ns == 0 || pulse.stages_done != seen_) {
      seen_ = pulse.stages_done;
      since_ns_ = now_ns();
    }
    return most_ns_ > 0 && static_cast<double>(now_ns() - since_ns_) > most_ns_;
  }

 private:
  const Server& server_;
  const double most_ns_;
  uint64_t seen_ = 0;
  int64_t since_ns_ = now_ns();
};

// A rank that `duet serve --hosts` started ends with it: standard input is a pipe that it holds open.
bool input_has_ended() {
  pollfd input{STDIN_FILENO, POLLIN, 0};
  char byte = 0;
  return poll(&input, 1, 0) > 0 && read(STDIN_FILENO, &byte, 1) <= 0;
}

}  // namespace

int verb_serve(const Flags& flags, const CliContext& context) {
  LlmOptions llm = llm_options(flags);
  llm.enable_prefix_caching = !flags.given("enable-prefix-caching") || flags.boolean("enable-prefix-caching");
  llm.prefix_cache_prompt_only = flags.boolean("prefix-cache-prompt-only");
  llm.skip_tokenizer_init = lacks_tokenizer(llm);
  if (llm.skip_tokenizer_init)
    log_warning(
        "{} has no tokenizer.json: completions of token ids only, answers carry no text (--tokenizer DIR "
        "names one)",
        llm.model);
  ServerOptions options = server_options(flags);
  const auto front = context.env.find(kServeSocketVariable);
  const bool behind_front = front != context.env.end();
  if (behind_front) {
    options.http.host = front->second;
    options.http.tls = {};
  }
  const EndSignals signals;
  ProgressView view(context);
  const std::unique_ptr<Engine> engine = Engine::start(llm, [&](double fraction) { view.loading(fraction); });
  view.clear();
  if (!engine) return kExitOk;  // an MPI rank other than 0, whose work is done
  Server server(*engine, options);
  const std::string room = fmt::format("{} ranks, KV cache of {} tokens", llm.tensor_parallel_size,
                                       engine->info().kv_blocks * engine->info().block_size);
  if (behind_front)
    log_info("{} is ready: {}", options.served_names.front(), room);
  else
    log_info("serving {} at {}, {}", options.served_names.front(), address_of(options.http, server.port()),
             room);
  Watchdog watchdog(server, flags.number("stall-timeout"));
  while (server.failure().empty()) {
    if (watchdog.hangs()) {
      const std::string why = fmt::format("ranks hang: no stage ended for {} s (--stall-timeout); {}",
                                          flags.text("stall-timeout"), engine->ranks().whereabouts());
      context.err << fmt::format("duet serve: {}\n", why) << std::flush;
      server.give_up(why);
      std::_Exit(kExitError);  // a thread that hangs cannot be joined
    }
    if (signals.wait(100) == 0 && !(behind_front && input_has_ended())) continue;
    log_info("ending: requests under way have {} s", flags.text("shutdown-timeout"));
    server.shut_down(flags.number("shutdown-timeout"));
    return kExitOk;
  }
  context.err << fmt::format("duet serve: the engine has failed: {}\n", server.failure()) << std::flush;
  server.shut_down(1);  // the requests have their errors; let them arrive
  return kExitError;
}

}  // namespace duet
