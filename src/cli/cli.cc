#include "cli/cli.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <new>
#include <ostream>
#include <sstream>
#include <thread>

#include "cli/flags.h"
#include "cli/help.h"
#include "cli/launch.h"
#include "cli/options.h"
#include "cli/serve_hosts.h"
#include "cli/suggest.h"
#include "cli/usage_error.h"
#include "cli/verbs.h"

namespace duet {
namespace {

/// Swallows what MPI ranks other than 0 would say.
class NullBuffer : public std::streambuf {
  int overflow(int c) override { return c == EOF ? 0 : c; }
  std::streamsize xsputn(const char*, std::streamsize count) override { return count; }
};

/// How long an MPI rank other than 0 keeps an error to itself.
constexpr std::chrono::seconds kWorkerPatience{3};

int run_internal(const Flags& flags, const CliContext& context) {
  if (flags.positional() == "flags-markdown") {
    context.out << flags_markdown();
    return kExitOk;
  }
  if (flags.positional() == "mpi-bandwidth") return internal_mpi_bandwidth(context);
  throw UsageError(fmt::format("unknown word \"{}\"; expected flags-markdown", flags.positional()));
}

int dispatch(const Flags& flags, const CliContext& context) {
  switch (flags.verb().bit) {
    case kGenerate: return verb_generate(flags, context);
    case kLogits: return verb_logits(flags, context);
    case kTokenize: return verb_tokenize(flags, context);
    case kTrace: return verb_trace_summary(flags, context);
    case kTraceChart: return verb_trace_chart(flags, context);
    case kInspect: return verb_inspect(flags, context);
    case kDoctor: return verb_doctor(flags, context);
    case kServe: return verb_serve(flags, context);
    case kBenchOverlap: return verb_bench_overlap(flags, context);
    case kBenchKernels: return verb_bench_kernels(flags, context);
    case kBenchEngine: return verb_bench_engine(flags, context);
    case kBenchServe: return verb_bench_serve(flags, context);
    case kBenchThroughput: return verb_bench_throughput(flags, context);
    case kBenchLatency: return verb_bench_latency(flags, context);
    case kPerplexity: return verb_eval_perplexity(flags, context);
    case kQuantize: return verb_quantize(flags, context);
    case kVersion: return verb_version(flags, context);
    default: return run_internal(flags, context);
  }
}

/// "trace summary", "bench engine", "eval perplexity" … are verbs of two words; `rest` loses the second.
std::string whole_verb(const std::string& name, std::vector<std::string>& rest) {
  if ((name != "trace" && name != "bench" && name != "eval") || rest.empty() || rest[0].starts_with('-'))
    return name;
  std::string whole = name + " " + rest[0];
  rest.erase(rest.begin());
  return whole;
}

/// `duet --hosts a,b generate …`: flags of verbs may stand in front of the verb too; here they go behind.
std::vector<std::string> verb_first(const std::vector<std::string>& args) {
  size_t verb = 0;
  while (verb < args.size() && args[verb].starts_with('-')) {
    const size_t equals = args[verb].find('=');
    const std::string typed = args[verb].substr(0, equals);
    const FlagSpec* flag = typed.starts_with("--") ? find_flag(std::string_view(typed).substr(2)) : nullptr;
    for (const FlagSpec& row : flag_table()) {
      if (row.alias && typed == row.alias) flag = &row;
    }
    if (!flag) break;  // named as the word that is wrong
    verb += flag->type != FlagType::kBool && equals == std::string::npos ? 2 : 1;
  }
  if (verb >= args.size()) return args;
  std::vector<std::string> turned(args.begin() + static_cast<std::ptrdiff_t>(verb), args.end());
  turned.insert(turned.end(), args.begin(), args.begin() + static_cast<std::ptrdiff_t>(verb));
  return turned;
}

/// A variable that is nearly one of ours is a slip of the pen; others may belong to somebody else.
void warn_of_slips(const VerbSpec& verb, const CliContext& context) {
  std::vector<std::string> known;
  for (const FlagSpec& flag : flag_table()) known.push_back(flag_variable(flag));
  for (const PlainVariable& variable : plain_variables()) known.emplace_back(variable.name);
  for (const auto& [name, value] : context.env) {
    if (!name.starts_with("DUET_") || std::find(known.begin(), known.end(), name) != known.end()) continue;
    const std::string nearest = nearest_name(name, known);
    if (nearest.empty() || edit_distance(name, nearest) > 2) continue;
    context.err << fmt::format("duet {}: the variable {} is unknown and has no effect. Did you mean {}?\n",
                               verb.name, name, nearest);
  }
}

int run_verb(const VerbSpec& verb, const std::vector<std::string>& rest, const CliContext& context) {
  const Flags flags = Flags::parse(verb, rest, context.env);
  if (flags.wants_help()) {
    context.out << verb_help(verb);
    return kExitOk;
  }
  warn_of_slips(verb, context);
  for (const std::string& note : flags.notes()) context.err << fmt::format("duet {}: {}\n", verb.name, note);
  if (verb.bit != kDoctor) {  // doctor starts mpirun for one of its figures only
    if (flags.given("hosts"))
      return verb.bit == kServe ? serve_on_hosts(flags, rest, context) : launch(flags, rest, context);
    for (const char* flag : {"mpirun-args", "print-launch"}) {
      if (flags.source(flag) == Flags::Source::kCommandLine) {
        throw UsageError(fmt::format("--{} is about the mpirun of --hosts, which is missing", flag));
      }
    }
  }
  return dispatch(flags, context);
}

// One line whatever the message holds: scripts read the first.
std::string one_line(std::string text) {
  for (char& c : text) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  return text;
}

int guarded(const std::string& name, const VerbSpec& verb, const std::vector<std::string>& rest,
            const CliContext& context) {
  int code = kExitError;
  std::string message;
  try {
    return run_verb(verb, rest, context);
  } catch (const UsageError& error) {
    message = error.what();
    code = kExitUsage;
  } catch (const std::bad_alloc&) {
    message = "out of memory; try a smaller --max-num-batched-tokens or --kv-cache-memory";
  } catch (const std::exception& error) {
    message = error.what();
  }
  context.out.flush();
  context.err << fmt::format("duet {}: {}\n", name, one_line(message)) << std::flush;
  return code;
}

int run(const std::vector<std::string>& given, const CliContext& context) {
  if (given.empty()) {
    context.err << overview_help();
    return kExitUsage;
  }
  const std::vector<std::string> args = verb_first(given);
  std::string name = args[0];
  std::vector<std::string> rest(args.begin() + 1, args.end());
  if (name == "--version" || name == "-V") name = "version";
  if (name == "--help" || name == "-h" || (name == "help" && rest.empty())) {
    context.out << overview_help();
    return kExitOk;
  }
  if (name == "help") {
    name = rest[0];
    rest.erase(rest.begin());
    rest.emplace_back("--help");
  }
  if (name == "trace" && (rest.empty() || rest[0].starts_with('-'))) {
    const bool help = !rest.empty() && (rest[0] == "--help" || rest[0] == "-h");
    (help ? context.out : context.err)
        << "usage: duet trace summary FILE | duet trace chart FILE --output F.svg"
           " (--help of each explains)\n";
    return help ? kExitOk : kExitUsage;
  }
  name = whole_verb(name, rest);
  const VerbSpec* verb = find_verb(name);
  if (!verb) {
    context.err << fmt::format("duet: unknown verb \"{}\"{} (duet --help lists them)\n", name,
                               did_you_mean(name, verb_names()));
    return kExitUsage;
  }
  return guarded(name, *verb, rest, context);
}

}  // namespace

int run_cli(const std::vector<std::string>& args, const CliContext& context) {
  if (!is_mpi_worker()) return run(args, context);
  NullBuffer nothing;
  std::ostream silent(&nothing);
  std::ostringstream errors;
  const int code = run(args, {context.env, silent, errors, false, context.program});
  if (code != kExitOk) {
    // Where rank 0 fails in the same way its line is enough, and the launcher ends this process
    // before the wait is over. Where it does not (another flag, a file that this host lacks), nobody
    // else knows the reason.
    std::this_thread::sleep_for(kWorkerPatience);
    std::string text = errors.str();
    if (const size_t end = text.find_last_not_of('\n'); end != std::string::npos) text.resize(end + 1);
    context.err << fmt::format("{} (MPI rank {})\n", text.substr(text.rfind('\n') + 1), mpi_rank_from_env())
                << std::flush;
  }
  return code;
}

Environment process_environment(const char* const* envp) {
  Environment env;
  for (; envp && *envp; ++envp) {
    const std::string entry = *envp;
    const size_t equals = entry.find('=');
    if (equals != std::string::npos) env.emplace(entry.substr(0, equals), entry.substr(equals + 1));
  }
  return env;
}

}  // namespace duet
