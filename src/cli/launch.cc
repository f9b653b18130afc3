#include "cli/launch.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <ostream>
#include <thread>

#include "base/error.h"
#include "cli/flags.h"
#include "cli/usage_error.h"
#include "comm/mpi_transport.h"

namespace duet {
namespace {

constexpr int kMaxSlots = 4096;

// Flags of the launch itself: the ranks must not see them again, in whichever way they came.
constexpr std::array kLaunchFlags{"hosts", "mpirun-args", "print-launch"};

bool is_launch_flag(const std::string& typed) {
  const FlagSpec* flag = typed.starts_with("--") ? find_flag(std::string_view(typed).substr(2)) : nullptr;
  return flag && std::any_of(kLaunchFlags.begin(), kLaunchFlags.end(),
                             [&](const char* name) { return find_flag(name) == flag; });
}

/// The arguments that the ranks get.
std::vector<std::string> without_launch_flags(const std::vector<std::string>& args) {
  std::vector<std::string> kept;
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i] == "--") {
      kept.insert(kept.end(), args.begin() + static_cast<std::ptrdiff_t>(i), args.end());
      break;
    }
    const size_t equals = args[i].find('=');
    const std::string typed = args[i].substr(0, equals);
    if (!is_launch_flag(typed)) {
      if (typed != "--no-print-launch" && typed != "--no_print_launch") kept.push_back(args[i]);
      continue;
    }
    const FlagSpec& flag = *find_flag(std::string_view(typed).substr(2));
    if (flag.type != FlagType::kBool && equals == std::string::npos) ++i;
  }
  return kept;
}

bool is_launch_variable(const std::string& name) {
  return std::any_of(kLaunchFlags.begin(), kLaunchFlags.end(),
                     [&](const char* flag) { return flag_variable(*find_flag(flag)) == name; });
}

// What a rank reads from its environment, where it is set.
std::vector<std::string> variables_to_forward(const Environment& env) {
  std::vector<std::string> names;
  for (const auto& [name, value] : env) {
    if (name.starts_with("DUET_") && !is_launch_variable(name)) names.push_back(name);
  }
  for (const FlagSpec& flag : flag_table()) {
    if (flag.env_alias && env.contains(flag.env_alias)) names.emplace_back(flag.env_alias);
  }
  return names;
}

bool library_is_open_mpi() {
  return std::string_view(mpi_library()).find("Open MPI") != std::string_view::npos;
}

// Ranks under another library's mpirun would each believe to be alone.
void check_mpirun(const std::string& mpirun) {
  const std::string command = quote_words({mpirun, "--version"}) + " 2>&1";
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), pclose);
  std::string text;
  std::array<char, 512> buffer{};
  while (pipe && fgets(buffer.data(), static_cast<int>(buffer.size()), pipe.get())) text += buffer.data();
  const bool open_mpi =
      text.find("Open MPI") != std::string::npos || text.find("OpenRTE") != std::string::npos;
  const bool hydra = text.find("HYDRA") != std::string::npos || text.find("Hydra") != std::string::npos;
  if (library_is_open_mpi() ? open_mpi : hydra) return;
  throw Error(ErrorKind::kNotFound,
              fmt::format("{} belongs to {}, but this duet was built with {}: install {}, or put its mpirun "
                          "first on PATH",
                          mpirun,
                          open_mpi ? "Open MPI"
                          : hydra  ? "MPICH"
                                   : "no MPI library that is known here",
                          mpi_library(), library_is_open_mpi() ? "openmpi-bin" : "mpich"));
}

// One rank per host has all of its cores. Several ranks with --threads T each get T cores of their own
// where this machine has as many (the hosts are taken to be alike); else nothing is bound, and a rank
// takes its share of the cores by number.
std::vector<std::string> binding(const Flags& flags, const std::vector<HostSlots>& hosts,
                                 const std::vector<std::string>& extra) {
  for (const std::string& word : extra) {
    const std::string_view name =
        std::string_view(word).substr(std::min(word.find_first_not_of('-'), word.size()));
    if (name.starts_with("bind-to") || name.starts_with("map-by")) return {};  // the user's own
  }
  int most = 1;
  for (const HostSlots& host : hosts) most = std::max(most, host.slots);
  const int64_t threads = flags.given("threads") ? flags.integer("threads") : 0;
  const bool own_cores = most > 1 && threads > 0 && most * threads <= std::thread::hardware_concurrency();
  if (library_is_open_mpi()) {
    if (own_cores) return {"--map-by", fmt::format("slot:PE={}", threads), "--bind-to", "core"};
    return {"--bind-to", "none"};
  }
  return {"-bind-to", own_cores ? fmt::format("core:{}", threads) : "none"};
}

int parse_slots(const std::string& text, const std::string& entry, const std::string& shown) {
  int slots = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), slots);
  if (error != std::errc() || stop != text.data() + text.size() || slots < 1 || slots > kMaxSlots) {
    throw UsageError(fmt::format("{}: \"{}\" has {} ranks; expected 1 to {}", shown, entry, text, kMaxSlots));
  }
  return slots;
}

void check_host_name(const std::string& name, const std::string& shown) {
  const bool fine = !name.empty() && name[0] != '-' && std::all_of(name.begin(), name.end(), [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '.' || c == '_';
  });
  if (!fine) {
    throw UsageError(fmt::format(
        "{}: \"{}\" is no host name or IPv4 address; expected a list like a,b or a:2,b:2", shown, name));
  }
}

std::vector<std::string> split_commas(const std::string& list) {
  std::vector<std::string> entries;
  size_t start = 0;
  while (true) {
    const size_t end = std::min(list.find(',', start), list.size());
    entries.push_back(list.substr(start, end - start));
    if (end == list.size()) return entries;
    start = end + 1;
  }
}

std::string place_of(const std::vector<HostSlots>& hosts) {
  std::vector<std::string> entries;
  for (const HostSlots& host : hosts) entries.push_back(fmt::format("{}:{}", host.name, host.slots));
  return fmt::format("{}", fmt::join(entries, ","));
}

}  // namespace

std::vector<HostSlots> parse_hosts(const std::string& list, int ranks, const std::string& shown) {
  std::vector<HostSlots> hosts;
  bool has_slots = false;
  for (const std::string& entry : split_commas(list)) {
    const size_t colon = entry.find(':');
    const std::string name = entry.substr(0, colon);
    check_host_name(name, shown);
    const int slots = colon == std::string::npos ? 1 : parse_slots(entry.substr(colon + 1), entry, shown);
    has_slots = has_slots || colon != std::string::npos;
    const auto same =
        std::find_if(hosts.begin(), hosts.end(), [&](const HostSlots& h) { return h.name == name; });
    if (same == hosts.end()) {
      hosts.push_back({name, slots});
    } else {
      same->slots += slots;
    }
  }
  const int total = std::accumulate(hosts.begin(), hosts.end(), 0,
                                    [](int sum, const HostSlots& h) { return sum + h.slots; });
  if (ranks == 0 || ranks == total) return hosts;
  if (has_slots) {
    throw UsageError(
        fmt::format("{} {} has room for {} ranks, and --tensor-parallel-size is {}; make them equal, or "
                    "drop the flag",
                    shown, list, total, ranks));
  }
  if (ranks % total != 0) {
    throw UsageError(
        fmt::format("--tensor-parallel-size is {}, which does not divide evenly over {} hosts; say how "
                    "many ranks each has, like {} a:2,b:1",
                    ranks, total, shown));
  }
  for (HostSlots& host : hosts) host.slots *= ranks / total;
  return hosts;
}

std::vector<std::string> split_words(const std::string& line, const std::string& shown) {
  std::vector<std::string> words;
  std::string word;
  bool in_word = false;
  char quote = 0;
  for (size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    const char next = i + 1 < line.size() ? line[i + 1] : '\0';
    if (c == '\\' && next != '\0' && (quote == 0 || (quote == '"' && (next == '"' || next == '\\')))) {
      word += line[++i];
      in_word = true;
    } else if (quote) {
      if (c == quote) {
        quote = 0;
      } else {
        word += c;
      }
    } else if (c == '\'' || c == '"') {
      quote = c;
      in_word = true;
    } else if (std::isspace(static_cast<unsigned char>(c))) {
      if (in_word) words.push_back(std::move(word));
      word.clear();
      in_word = false;
    } else {
      word += c;
      in_word = true;
    }
  }
  if (quote) throw UsageError(fmt::format("{}: the quote {} is not closed in: {}", shown, quote, line));
  if (in_word) words.push_back(std::move(word));
  return words;
}

std::string quote_words(const std::vector<std::string>& words) {
  std::string line;
  for (const std::string& word : words) {
    if (!line.empty()) line += ' ';
    const bool plain = !word.empty() && std::all_of(word.begin(), word.end(), [](char c) {
      return std::isalnum(static_cast<unsigned char>(c)) || std::strchr("-_./,:=@%+", c);
    });
    if (plain) {
      line += word;
      continue;
    }
    line += '\'';
    for (const char c : word) line += c == '\'' ? std::string("'\\''") : std::string(1, c);
    line += '\'';
  }
  return line;
}

std::string find_mpirun(const Environment& env) {
  const auto path = env.find("PATH");
  if (path == env.end()) return "";
  for (const char* name : {library_is_open_mpi() ? "mpirun.openmpi" : "mpirun.mpich", "mpirun"}) {
    std::string rest = path->second;
    while (!rest.empty()) {
      const size_t colon = rest.find(':');
      std::string candidate = rest.substr(0, colon) + "/" + name;
      if (access(candidate.c_str(), X_OK) == 0) return candidate;
      if (colon == std::string::npos) break;
      rest.erase(0, colon + 1);
    }
  }
  return "";
}

std::string own_path() {
  std::array<char, 4096> self{};
  const ssize_t length = readlink("/proc/self/exe", self.data(), self.size() - 1);
  if (length <= 0)
    throw Error(ErrorKind::kNotFound, "/proc/self/exe can't be read: this binary's path is unknown");
  return {self.data(), static_cast<size_t>(length)};
}

std::vector<std::string> launch_command(const Flags& flags, const CliContext& context,
                                        const std::vector<std::string>& program) {
  const std::string why = flags.given("hosts") ? flags.shown("hosts") : "--mpi";
  if (!have_mpi()) {
    throw UsageError(
        fmt::format("{}: this build of duet has no MPI; build with DUET_MPI=openmpi or mpich", why));
  }
  if (launched_under_mpi()) {
    throw UsageError(
        fmt::format("{}, but mpirun or srun started this process already; drop one of them", why));
  }
  if (flags.text("distributed-executor-backend") == "threads") {
    throw UsageError(fmt::format("{} starts MPI processes, and {} is threads; drop one of them", why,
                                 flags.shown("distributed-executor-backend")));
  }
  const int ranks =
      flags.given("tensor-parallel-size") ? static_cast<int>(flags.integer("tensor-parallel-size")) : 0;
  std::vector<HostSlots> hosts{{"localhost", 2}};
  if (flags.given("hosts")) hosts = parse_hosts(flags.text("hosts"), ranks, why);
  const std::string mpirun = find_mpirun(context.env);
  if (mpirun.empty()) {
    throw Error(ErrorKind::kNotFound, fmt::format("{} needs mpirun, which is not on PATH; install {}", why,
                                                  library_is_open_mpi() ? "openmpi-bin" : "mpich"));
  }
  check_mpirun(mpirun);
  const std::vector<std::string> extra = split_words(flags.text("mpirun-args"), flags.shown("mpirun-args"));
  std::vector<std::string> words{mpirun};
  const auto add = [&](const std::vector<std::string>& more) {
    words.insert(words.end(), more.begin(), more.end());
  };
  int total = 0;
  for (const HostSlots& host : hosts) total += host.slots;
  if (library_is_open_mpi()) {
    if (geteuid() == 0) add({"--allow-run-as-root"});
    add({"--host", place_of(hosts)});
  } else {
    add({"-hosts", place_of(hosts)});  // Hydra hands the whole environment on by itself
  }
  add({"-n", std::to_string(total)});
  add(binding(flags, hosts, extra));
  if (library_is_open_mpi()) {
    for (const std::string& name : variables_to_forward(context.env)) add({"-x", name});
  }
  add(extra);
  add(program);
  return words;
}

std::vector<char*> pointers_to(std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  return pointers;
}

Launch launch_of(const Flags& flags, const std::vector<std::string>& args, const CliContext& context) {
  std::vector<std::string> program{own_path()};
  for (const std::string& word : split_words(flags.verb().name, "verb")) program.push_back(word);
  const std::vector<std::string> kept = without_launch_flags(args);
  program.insert(program.end(), kept.begin(), kept.end());
  Launch made;
  made.words = launch_command(flags, context, program);
  for (const auto& [name, value] : context.env) {
    if (!is_launch_variable(name)) made.environment.push_back(name + "=" + value);
  }
  return made;
}

int launch(const Flags& flags, const std::vector<std::string>& args, const CliContext& context) {
  auto [words, environment] = launch_of(flags, args, context);
  if (flags.boolean("print-launch")) {
    context.out << quote_words(words) << '\n';
    return kExitOk;
  }
  context.out.flush();
  context.err.flush();
  execve(words[0].c_str(), pointers_to(words).data(), pointers_to(environment).data());
  throw Error(ErrorKind::kNotFound, fmt::format("{} can't be started: {}", words[0], std::strerror(errno)));
}

}  // namespace duet
