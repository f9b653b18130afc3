// What a waiting user sees on standard error: a bar that is redrawn on a terminal, else a line every
// few seconds. Called from the thread that runs the engine.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>

namespace duet {

struct CliContext;
struct Progress;

class ProgressView {
 public:
  explicit ProgressView(const CliContext& context) : ProgressView(context, kRedrawNs, kLineNs) {}
  /// Other intervals, for tests.
  ProgressView(const CliContext& context, int64_t redraw_ns, int64_t line_ns);
  ~ProgressView();
  ProgressView(const ProgressView&) = delete;
  ProgressView& operator=(const ProgressView&) = delete;

  /// Fraction of the weights that is loaded.
  void loading(double fraction);
  void generating(const Progress& progress);
  /// Fraction of the runs of `what` that is done.
  void measuring(const std::string& what, double fraction);
  /// Wipes the bar; later calls draw a new one.
  void clear();

 private:
  static constexpr int64_t kRedrawNs = 100'000'000;  // the eye sees no more than that
  static constexpr int64_t kLineNs = 5'000'000'000;  // a log file stays short
  bool due(bool last);
  void show(const char* begin, size_t size);

  std::ostream& err_;
  bool terminal_;
  int64_t interval_ns_;
  int64_t last_ns_;
  bool drawn_ = false;
};

}  // namespace duet
