// What the tests of this room share: a directory that goes away, crafted files, and the error that
// a piece of code throws.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"

namespace duet {

class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "duet_load_XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  std::string write(const std::string& name, const std::string& bytes) const {
    std::ofstream(file(name), std::ios::binary) << bytes;
    return file(name);
  }

 private:
  std::string path_;
};

/// Length field, header and `data_bytes` bytes of data.
inline std::string safetensors_bytes(const std::string& header, size_t data_bytes) {
  std::string bytes(8, '\0');
  const uint64_t length = header.size();
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + std::string(data_bytes, '\0');
}

struct Caught {
  ErrorKind kind = ErrorKind::kInternal;
  std::string text;
};

/// What `body` throws; a test failure when it throws nothing.
template <typename Body>
Caught caught(const Body& body) {
  try {
    body();
  } catch (const Error& e) {
    return {e.kind(), e.what()};
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

/// Expects an Error of `kind` whose text holds every one of the pieces.
template <typename Body, typename... Pieces>
void expect_error(ErrorKind kind, const Body& body, const Pieces&... pieces) {
  const Caught error = caught(body);
  EXPECT_STREQ(to_string(error.kind), to_string(kind)) << error.text;
  for (const std::string& piece : std::vector<std::string>{pieces...}) {
    EXPECT_THAT(error.text, ::testing::HasSubstr(piece));
  }
}

}  // namespace duet
