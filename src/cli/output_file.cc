#include "cli/output_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "base/error.h"

namespace duet {

OutputFile::OutputFile(const std::string& path, std::ostream& standard_output) : path_(path) {
  if (path == "-") {
    stream_ = &standard_output;
    return;
  }
  std::error_code ignored;
  const auto status = std::filesystem::status(path, ignored);
  const bool plain = !std::filesystem::exists(status) || std::filesystem::is_regular_file(status);
  if (plain) temporary_ = fmt::format("{}.tmp.{}", path, getpid());
  errno = 0;
  file_.open(plain ? temporary_ : path, std::ios::binary);
  if (!file_) {
    const int reason = errno;
    throw Error(ErrorKind::kInvalidArgument, fmt::format("cannot write {}: {}", path, std::strerror(reason)));
  }
  stream_ = &file_;
}

OutputFile::~OutputFile() {
  if (done_ || temporary_.empty()) return;
  file_.close();
  std::error_code ignored;
  std::filesystem::remove(temporary_, ignored);
}

void OutputFile::commit() {
  stream_->flush();
  if (!*stream_) {
    throw Error(ErrorKind::kResourceExhausted, fmt::format("cannot write {}: is the disk full?", path_));
  }
  if (!temporary_.empty()) {
    file_.close();
    std::error_code error;
    std::filesystem::rename(temporary_, path_, error);
    if (error) {
      throw Error(ErrorKind::kInvalidArgument, fmt::format("cannot write {}: {}", path_, error.message()));
    }
  }
  done_ = true;
}

}  // namespace duet
