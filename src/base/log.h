// Log lines on stderr: "[duet] text". Thread-safe, no state but the level, which DUET_LOG
// (debug|info|warning|error|off, default info) sets once at first use.
#pragma once

#include <fmt/format.h>

#include <string_view>

namespace duet {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

LogLevel log_level();
void log_line(LogLevel level, std::string_view text);

template <typename... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::kWarning, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_debug(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::kDebug, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace duet
