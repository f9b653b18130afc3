#include "base/log.h"

#include <cstdio>
#include <cstdlib>
#include <string>

namespace duet {

LogLevel log_level() {
  static const LogLevel level = [] {
    const char* text = std::getenv("DUET_LOG");
    const std::string name = text ? text : "info";
    if (name == "debug") return LogLevel::kDebug;
    if (name == "warning") return LogLevel::kWarning;
    if (name == "error") return LogLevel::kError;
    if (name == "off") return LogLevel::kOff;
    return LogLevel::kInfo;
  }();
  return level;
}

void log_line(LogLevel level, std::string_view text) {
  if (level < log_level()) return;
  const char* mark = level == LogLevel::kWarning ? "warning: " : level == LogLevel::kError ? "error: " : "";
  // One write per line: lines of several ranks must not interleave.
  const std::string line = fmt::format("[duet] {}{}\n", mark, text);
  std::fwrite(line.data(), 1, line.size(), stderr);
}

}  // namespace duet
