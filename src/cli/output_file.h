// A result file: opened at once, so that a path that cannot be written fails before the work, and
// put under its name only when it is complete. "-" is the context's standard output; devices and
// pipes are written directly.
#pragma once

#include <fstream>
#include <iosfwd>
#include <string>

namespace duet {

class OutputFile {
 public:
  /// Throws Error(kInvalidArgument) with the system's reason.
  OutputFile(const std::string& path, std::ostream& standard_output);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  std::ostream& stream() { return *stream_; }
  /// Throws Error(kResourceExhausted) when something could not be written.
  void commit();

 private:
  std::string path_;
  std::string temporary_;  // empty: written directly
  std::ofstream file_;
  std::ostream* stream_;
  bool done_ = false;
};

}  // namespace duet
