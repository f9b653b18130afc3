#include "cli/serve_hosts.h"

#include <fmt/format.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fcntl.h>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <ostream>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "cli/end_signals.h"
#include "cli/flags.h"
#include "cli/launch.h"
#include "engine/options.h"
#include "serve/front.h"

namespace duet {

namespace {

constexpr int kTickMs = 100;
constexpr double kGraceSeconds = 10;  // for ranks that were told to end

// A folder that nobody else may enter, for the socket.
class PrivateFolder {
 public:
  PrivateFolder() : path_((std::filesystem::temp_directory_path() / "duet-serve-XXXXXX").string()) {
    if (!mkdtemp(path_.data()))
      throw Error(ErrorKind::kResourceExhausted,
                  fmt::format("cannot make {}: {}", path_, std::strerror(errno)));
  }
  ~PrivateFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  PrivateFolder(const PrivateFolder&) = delete;
  PrivateFolder& operator=(const PrivateFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// mpirun, in a process group of its own: a Ctrl-C in the terminal is for the supervisor alone, which lets
// requests finish first. The pipe on its standard input reaches rank 0, which ends when the pipe does.
class Ranks {
 public:
  explicit Ranks(Launch launch) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) throw Error(ErrorKind::kResourceExhausted, "no pipe for the ranks");
    lifeline_ = ends[1];
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[0], STDIN_FILENO);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    sigset_t none;
    sigemptyset(&none);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
    const std::string& program = launch.words[0];
    const int error = posix_spawn(&pid_, program.c_str(), &actions, &attributes,
                                  pointers_to(launch.words).data(), pointers_to(launch.environment).data());
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[0]);
    if (error != 0) {
      close(lifeline_);
      throw Error(ErrorKind::kNotFound,
                  fmt::format("{} can't be started: {}", program, std::strerror(error)));
    }
  }
  ~Ranks() {
    if (lifeline_ >= 0) close(lifeline_);
    if (ended_) return;
    kill(-pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  /// How they ended, as words; nothing while they run.
  std::optional<std::string> ended() {
    if (ended_) return how_;
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) != pid_) return std::nullopt;
    ended_ = true;
    how_ = WIFSIGNALED(status) ? fmt::format("mpirun was ended by signal {}", WTERMSIG(status))
                               : fmt::format("mpirun's exit status is {}", WEXITSTATUS(status));
    return how_;
  }
  /// Lets them end: rank 0 sees the end of its input. What is left after a while is killed.
  void end() {
    close(std::exchange(lifeline_, -1));
    for (const int signal : {0, SIGTERM}) {
      if (signal != 0) kill(pid_, signal);
      const int64_t until = now_ns() + static_cast<int64_t>(kGraceSeconds * 1e9);
      while (!ended() && now_ns() < until) usleep(20'000);
      if (ended_) return;
    }
  }

 private:
  pid_t pid_ = -1;
  int lifeline_ = -1;
  bool ended_ = false;
  std::string how_;
};

}  // namespace

HttpServerOptions http_options(const Flags& flags) {
  HttpServerOptions o;
  o.host = flags.text("host");
  o.port = static_cast<int>(flags.integer("port"));
  o.max_connections = flags.integer("max-connections");
  o.limits.max_body_bytes =
      static_cast<size_t>(parse_bytes(flags.text("max-request-bytes"), "--max-request-bytes"));
  o.tls.certificate = flags.text("ssl-certfile");
  o.tls.key = flags.text("ssl-keyfile");
  o.tls.client_ca = flags.text("ssl-ca-certs");
  o.tls.require_client = flags.given("ssl-ca-certs");
  return o;
}

std::string address_of(const HttpServerOptions& options, int port) {
  return fmt::format("{}://{}:{}", options.tls.certificate.empty() ? "http" : "https", options.host, port);
}

int serve_on_hosts(const Flags& flags, const std::vector<std::string>& args, const CliContext& context) {
  if (flags.boolean("print-launch")) return launch(flags, args, context);
  const PrivateFolder folder;
  const std::string socket = folder.path() + "/rank0";
  Environment environment = context.env;
  environment[kServeSocketVariable] = socket;
  const CliContext ranks_context{environment, context.out, context.err, context.err_is_terminal,
                                 context.program};
  const HttpServerOptions options = http_options(flags);
  const EndSignals signals;
  Ranks ranks(launch_of(flags, args, ranks_context));
  while (!is_listening(socket)) {
    if (const auto how = ranks.ended()) {
      context.err
          << fmt::format(
                 "duet serve: the ranks ended before they were ready: {}. Rank 0 runs on the first of "
                 "{}, which must be this machine\n",
                 *how, flags.shown("hosts"))
          << std::flush;
      return kExitError;
    }
    if (signals.wait(kTickMs) != 0) {
      ranks.end();
      return kExitOk;
    }
  }
  Front front(options, socket);
  log_info("serving {} at {}, ranks on {}", flags.positional(), address_of(options, front.port()),
           flags.text("hosts"));
  while (true) {
    if (const auto how = ranks.ended()) {
      const std::string why = "the ranks have ended, see the server's log: " + *how;
      context.err << fmt::format("duet serve: {}\n", why) << std::flush;
      front.give_up(why);
      return kExitError;
    }
    if (signals.wait(kTickMs) == 0) continue;
    log_info("ending: requests under way have {} s", flags.text("shutdown-timeout"));
    front.shut_down(flags.number("shutdown-timeout"));
    ranks.end();
    return kExitOk;
  }
}

}  // namespace duet
