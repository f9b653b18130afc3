#include "cli/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <ostream>
#include <string>

#include "base/clock.h"
#include "cli/cli.h"
#include "duet/llm.h"

namespace duet {
namespace {

std::string bar(double fraction) {
  constexpr int kCells = 24;
  const int full = static_cast<int>(std::clamp(fraction, 0.0, 1.0) * kCells + 0.5);
  return std::string(static_cast<size_t>(full), '#') + std::string(static_cast<size_t>(kCells - full), '.');
}

}  // namespace

ProgressView::ProgressView(const CliContext& context, int64_t redraw_ns, int64_t line_ns)
    : err_(context.err),
      terminal_(context.err_is_terminal),
      interval_ns_(terminal_ ? redraw_ns : line_ns),
      last_ns_(terminal_ ? 0 : now_ns()) {}

ProgressView::~ProgressView() {
  clear();
}

void ProgressView::clear() {
  if (drawn_) err_ << "\r\x1b[K" << std::flush;
  drawn_ = false;
}

bool ProgressView::due(bool last) {
  const int64_t now = now_ns();
  if (now - last_ns_ < interval_ns_ && !(last && terminal_)) return false;
  last_ns_ = now;
  return true;
}

void ProgressView::show(const char* begin, size_t size) {
  if (terminal_) {
    err_ << "\r\x1b[K" << std::string_view(begin, size) << std::flush;
    drawn_ = true;
  } else {
    err_ << "[duet] " << std::string_view(begin, size) << '\n' << std::flush;
  }
}

void ProgressView::loading(double fraction) {
  if (!due(fraction >= 1)) return;
  const std::string text = fmt::format("loading [{}] {:3.0f} %", bar(fraction), 100 * fraction);
  show(text.data(), text.size());
}

void ProgressView::generating(const Progress& progress) {
  if (!due(progress.requests_done == progress.requests)) return;
  const double tokens = static_cast<double>(progress.prefill_tokens + progress.decode_tokens);
  const double done = progress.requests > 0 ? static_cast<double>(progress.requests_done) /
                                                  static_cast<double>(progress.requests)
                                            : 0;
  const double exposed = progress.step_ms > 0 ? 100 * progress.exposed_ms / progress.step_ms : 0;
  const std::string text =
      fmt::format("[{}] {}/{} requests, {:.0f} tokens/s, exposed communication {:.1f} ms ({:.1f} %)",
                  bar(done), progress.requests_done, progress.requests,
                  progress.seconds > 0 ? tokens / progress.seconds : 0.0, progress.exposed_ms, exposed);
  show(text.data(), text.size());
}

void ProgressView::measuring(const std::string& what, double fraction) {
  if (!due(fraction >= 1)) return;
  const std::string text = fmt::format("{} [{}] {:3.0f} %", what, bar(fraction), 100 * fraction);
  show(text.data(), text.size());
}

}  // namespace duet
