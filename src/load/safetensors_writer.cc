#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <numeric>
#include <unordered_set>

#include "base/error.h"
#include "load/json.h"
#include "load/safetensors.h"

namespace duet {

namespace {

std::string_view published_name(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "F32";
    case DType::kBf16: return "BF16";
    case DType::kF16: return "F16";
    case DType::kF8E4M3: return "F8_E4M3";
    case DType::kI8: return "I8";
    case DType::kI32: return "I32";
    case DType::kI64: return "I64";
    case DType::kU8: return "U8";
  }
  return "F32";
}

std::string json_string(const std::string& text, const std::string& path) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    throw Error(ErrorKind::kInvalidArgument, path + ": a tensor name or metadata text is not valid UTF-8");
  }
}

}  // namespace

struct SafetensorsWriter::State {
  struct Tensor {
    SafetensorsDecl decl;
    uint64_t elements = 0;
    uint64_t begin = 0;    // bytes from the start of the data area
    uint64_t written = 0;  // elements
  };

  std::string path;
  std::string temporary;
  std::vector<Tensor> tensors;
  uint64_t data_offset = 0;
  uint64_t data_bytes = 0;
  int fd = -1;

  [[noreturn]] void fail_io(const char* what, int error) const {
    const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
    throw Error(full ? ErrorKind::kResourceExhausted : ErrorKind::kInvalidArgument,
                fmt::format("{}: cannot {} ({} bytes in all): {}", path, what, data_offset + data_bytes,
                            std::strerror(error)));
  }

  void plan(std::vector<SafetensorsDecl> decls) {
    std::unordered_set<std::string> names;
    for (SafetensorsDecl& decl : decls) {
      Tensor t;
      t.elements = 1;
      uint64_t bytes = dtype_bytes(decl.dtype);
      for (const int64_t size : decl.shape) {
        const auto u = static_cast<uint64_t>(size);
        if (size < 0 || __builtin_mul_overflow(t.elements, u, &t.elements) ||
            __builtin_mul_overflow(bytes, u, &bytes) || bytes > uint64_t{INT64_MAX} / 2) {
          throw Error(ErrorKind::kInvalidArgument,
                      fmt::format("{}: tensor {} has the impossible shape {}", path, show_name(decl.name),
                                  shape_to_string(decl.shape)));
        }
      }
      if (decl.name == "__metadata__" || !names.insert(decl.name).second) {
        throw Error(
            ErrorKind::kInvalidArgument,
            fmt::format("{}: tensor name {} is reserved or appears twice", path, show_name(decl.name)));
      }
      t.decl = std::move(decl);
      tensors.push_back(std::move(t));
    }
    // Widest elements first, as the reference implementation orders them: with the header padded to
    // 8 bytes every tensor is then aligned for its dtype.
    std::vector<size_t> order(tensors.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return dtype_bytes(tensors[a].decl.dtype) > dtype_bytes(tensors[b].decl.dtype);
    });
    for (const size_t i : order) {
      Tensor& t = tensors[i];
      t.begin = data_bytes;
      if (__builtin_add_overflow(data_bytes, t.elements * dtype_bytes(t.decl.dtype), &data_bytes) ||
          data_bytes > uint64_t{INT64_MAX} / 2) {
        throw Error(ErrorKind::kInvalidArgument, path + ": the tensors are too large for one file");
      }
    }
  }

  std::string header_text(const std::vector<std::pair<std::string, std::string>>& metadata) const {
    std::string text = "{";
    if (!metadata.empty()) {
      text += "\"__metadata__\":{";
      for (const auto& [key, value] : metadata) {
        text += json_string(key, path) + ":" + json_string(value, path) + ",";
      }
      text.back() = '}';
      text += ',';
    }
    for (const Tensor& t : tensors) {
      std::string shape;
      for (const int64_t size : t.decl.shape) shape += (shape.empty() ? "" : ",") + std::to_string(size);
      text += fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}},",
                          json_string(t.decl.name, path), published_name(t.decl.dtype), shape, t.begin,
                          t.begin + t.elements * dtype_bytes(t.decl.dtype));
    }
    if (text.back() == ',') text.pop_back();
    text += '}';
    text.resize((text.size() + 7) / 8 * 8, ' ');
    return text;
  }

  void write_at(uint64_t offset, const char* data, uint64_t bytes) const {
    while (bytes > 0) {
      const ssize_t n =
          pwrite(fd, data, std::min<uint64_t>(bytes, uint64_t{1} << 30), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) fail_io("write", n < 0 ? errno : ENOSPC);
      data += n;
      offset += static_cast<uint64_t>(n);
      bytes -= static_cast<uint64_t>(n);
    }
  }

  void create(const std::string& header) {
    std::string bytes(8, '\0');
    for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>((uint64_t{header.size()} >> (8 * i)) & 0xffu);
    bytes += header;
    data_offset = bytes.size();
    struct stat status {};
    if (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
      throw Error(ErrorKind::kInvalidArgument,
                  path + ": not a plain file; tensors are written in any order, which only a file allows");
    }
    temporary = fmt::format("{}.tmp.{}", path, getpid());
    fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) {
      const int error = errno;
      temporary.clear();  // nothing of ours to remove
      fail_io("create", error);
    }
    // A full disk should be known before hours of work; file systems that cannot reserve say so.
    const auto total = static_cast<off_t>(data_offset + data_bytes);
    if (fallocate(fd, 0, 0, total) != 0) {
      if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL) fail_io("reserve space", errno);
      if (ftruncate(fd, total) != 0) fail_io("set the size", errno);
    }
    write_at(0, bytes.data(), bytes.size());
  }

  ~State() {
    if (fd >= 0) ::close(fd);
    if (!temporary.empty()) std::remove(temporary.c_str());
  }
};

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<SafetensorsDecl> tensors,
                                     std::vector<std::pair<std::string, std::string>> metadata)
    : state_(std::make_unique<State>()) {
  state_->path = path;
  state_->plan(std::move(tensors));
  state_->create(state_->header_text(metadata));
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::write(size_t index, int64_t offset, const void* data, int64_t count) {
  DUET_CHECK(state_->fd >= 0 && index < state_->tensors.size());
  State::Tensor& t = state_->tensors[index];
  DUET_CHECK(offset >= 0 && count >= 0 && static_cast<uint64_t>(offset) <= t.elements &&
             static_cast<uint64_t>(count) <= t.elements - static_cast<uint64_t>(offset));
  const uint64_t size = dtype_bytes(t.decl.dtype);
  state_->write_at(state_->data_offset + t.begin + static_cast<uint64_t>(offset) * size,
                   static_cast<const char*>(data), static_cast<uint64_t>(count) * size);
  t.written += static_cast<uint64_t>(count);
}

void SafetensorsWriter::finish() {
  State& s = *state_;
  DUET_CHECK(s.fd >= 0);
  for (const State::Tensor& t : s.tensors) {
    if (t.written != t.elements) {
      throw Error(ErrorKind::kInternal, fmt::format("{}: tensor {} got {} of its {} elements", s.path,
                                                    show_name(t.decl.name), t.written, t.elements));
    }
  }
  const int closed = ::close(std::exchange(s.fd, -1));
  if (closed != 0) s.fail_io("write", errno);  // network file systems report a full disk only here
  if (std::rename(s.temporary.c_str(), s.path.c_str()) != 0) s.fail_io("rename into place", errno);
  s.temporary.clear();
}

void write_safetensors(const std::string& path, const std::vector<SafetensorsTensor>& tensors) {
  std::vector<SafetensorsDecl> decls;
  for (const SafetensorsTensor& t : tensors) decls.push_back(t.decl);
  SafetensorsWriter writer(path, std::move(decls));
  for (size_t i = 0; i < tensors.size(); ++i) {
    int64_t count = 1;
    for (const int64_t size : tensors[i].decl.shape) count *= size;
    writer.write(i, 0, tensors[i].data, count);
  }
  writer.finish();
}

}  // namespace duet
