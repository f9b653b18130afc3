#include "load/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "base/error.h"
#include "load/json.h"

namespace duet {

namespace {
using nlohmann::json;

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit

struct PublishedDType {
  std::string_view name;
  uint64_t bits;
  std::optional<DType> dtype;
};

// Every dtype that the format names, so that a file which holds one beside the weights still opens.
constexpr PublishedDType kPublished[] = {
    {"F32", 32, DType::kF32},       {"BF16", 16, DType::kBf16},   {"F16", 16, DType::kF16},
    {"F8_E4M3", 8, DType::kF8E4M3}, {"I8", 8, DType::kI8},        {"I32", 32, DType::kI32},
    {"I64", 64, DType::kI64},       {"U8", 8, DType::kU8},        {"BOOL", 8, std::nullopt},
    {"F8_E5M2", 8, std::nullopt},   {"F8_E8M0", 8, std::nullopt}, {"I16", 16, std::nullopt},
    {"U16", 16, std::nullopt},      {"U32", 32, std::nullopt},    {"U64", 64, std::nullopt},
    {"F64", 64, std::nullopt},      {"C64", 64, std::nullopt},    {"F4", 4, std::nullopt},
    {"F6_E2M3", 6, std::nullopt},   {"F6_E3M2", 6, std::nullopt},
};

struct HeaderParser {
  const std::string& file;
  uint64_t data_bytes;

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorKind::kCorrupt, file + ": not a valid safetensors file: " + what);
  }

  uint64_t unsigned_value(const json& value, const std::string& where) const {
    if (!value.is_number_unsigned()) {
      fail(fmt::format("{} holds {}; expected a non-negative integer", where, describe(value)));
    }
    return value.get<uint64_t>();
  }

  const json& member(const json& object, const char* key, const std::string& where) const {
    const auto it = object.find(key);
    if (it == object.end()) fail(fmt::format("{} has no \"{}\"", where, key));
    return *it;
  }

  SafetensorsEntry entry(const std::string& name, const json& value) const {
    const std::string where = "tensor " + show_name(name);
    if (!value.is_object()) fail(fmt::format("{} is {}; expected an object", where, describe(value)));
    SafetensorsEntry e;
    e.name = name;
    const json& dtype = member(value, "dtype", where);
    if (!dtype.is_string()) fail(fmt::format("{}: dtype is {}; expected a name", where, describe(dtype)));
    e.dtype_name = dtype.get<std::string>();
    const auto* published = std::find_if(std::begin(kPublished), std::end(kPublished),
                                         [&](const PublishedDType& d) { return d.name == e.dtype_name; });
    if (published == std::end(kPublished)) {
      fail(fmt::format("{} has dtype {}, which the format does not know", where, show_name(e.dtype_name)));
    }
    e.dtype = published->dtype;
    read_shape(member(value, "shape", where), where, e);
    read_offsets(member(value, "data_offsets", where), where, e);
    check_size(published->bits, where, e);
    return e;
  }

  void read_shape(const json& shape, const std::string& where, SafetensorsEntry& e) const {
    if (!shape.is_array()) fail(fmt::format("{}: shape is {}; expected a list", where, describe(shape)));
    for (const json& item : shape) {
      const uint64_t size = unsigned_value(item, where + ": shape");
      if (size > uint64_t{INT64_MAX}) fail(fmt::format("{}: a dimension of {} is too large", where, size));
      e.shape.push_back(static_cast<int64_t>(size));
    }
  }

  void read_offsets(const json& offsets, const std::string& where, SafetensorsEntry& e) const {
    if (!offsets.is_array() || offsets.size() != 2) {
      fail(fmt::format("{}: data_offsets is {}; expected [begin, end]", where, describe(offsets)));
    }
    e.begin = unsigned_value(offsets[0], where + ": data_offsets");
    e.end = unsigned_value(offsets[1], where + ": data_offsets");
    if (e.begin > e.end) fail(fmt::format("{}: data_offsets [{}, {}] run backwards", where, e.begin, e.end));
    if (e.end > data_bytes) {
      fail(fmt::format("{}: data_offsets [{}, {}] reach beyond the file's {} bytes of data (truncated?)",
                       where, e.begin, e.end, data_bytes));
    }
  }

  void check_size(uint64_t bits, const std::string& where, const SafetensorsEntry& e) const {
    uint64_t needed_bits = bits;
    for (const int64_t size : e.shape) {
      if (__builtin_mul_overflow(needed_bits, static_cast<uint64_t>(size), &needed_bits)) {
        fail(fmt::format("{}: the size of shape {} overflows", where, shape_to_string(e.shape)));
      }
    }
    if (needed_bits % 8 != 0) {
      fail(fmt::format("{}: {} × {} is not a whole number of bytes", where, e.dtype_name,
                       shape_to_string(e.shape)));
    }
    if (needed_bits / 8 != e.end - e.begin) {
      fail(fmt::format("{}: {} × {} needs {} bytes, data_offsets [{}, {}] hold {}", where, e.dtype_name,
                       shape_to_string(e.shape), needed_bits / 8, e.begin, e.end, e.end - e.begin));
    }
  }

  // The format: "the byte buffer needs to be entirely indexed, and cannot contain holes".
  void check_tiling(const std::vector<SafetensorsEntry>& sorted) const {
    uint64_t reached = 0;
    const std::string* before = nullptr;
    for (const SafetensorsEntry& e : sorted) {
      if (e.begin < reached)
        fail(fmt::format("tensors {} and {} overlap", show_name(*before), show_name(e.name)));
      if (e.begin > reached) {
        fail(fmt::format("{} bytes before tensor {} belong to no tensor", e.begin - reached,
                         show_name(e.name)));
      }
      reached = e.end;
      before = &e.name;
    }
    if (reached != data_bytes) {
      fail(fmt::format("the header describes {} bytes of data, the file holds {}", reached, data_bytes));
    }
  }
};

}  // namespace

std::string shape_to_string(std::span<const int64_t> shape) {
  constexpr size_t kShown = 16;
  if (shape.size() <= kShown) return fmt::format("[{}]", fmt::join(shape, ", "));
  return fmt::format("[{}, …] ({} dimensions)", fmt::join(shape.first(kShown), ", "), shape.size());
}

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> bytes, uint64_t file_size,
                                           const std::string& file_name) {
  HeaderParser parser{file_name, 0};
  if (file_size < kLengthBytes || bytes.size() < kLengthBytes) {
    parser.fail(
        fmt::format("{} bytes, shorter than the length field", std::min<uint64_t>(file_size, bytes.size())));
  }
  uint64_t length = 0;
  for (uint64_t i = 0; i < kLengthBytes; ++i)
    length |= uint64_t{std::to_integer<uint8_t>(bytes[i])} << (8 * i);
  if (length > kMaxHeaderBytes) {
    parser.fail(fmt::format("the header claims {} bytes, the format allows {}", length, kMaxHeaderBytes));
  }
  if (length > file_size - kLengthBytes || length > bytes.size() - kLengthBytes) {
    parser.fail(fmt::format("the header claims {} bytes, the file has {} (truncated?)", length,
                            std::min<uint64_t>(file_size, bytes.size()) - kLengthBytes));
  }
  parser.data_bytes = file_size - kLengthBytes - length;
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, length);
  if (text.empty() || text.front() != '{') parser.fail("the header does not begin with \"{\"");
  const json root = parse_json(text, file_name, JsonKeys::kUnique);

  SafetensorsHeader header;
  header.data_offset = kLengthBytes + length;
  for (const auto& [name, value] : root.items()) {
    if (name != "__metadata__") {
      header.tensors.push_back(parser.entry(name, value));
      continue;
    }
    if (!value.is_object()) parser.fail("__metadata__ is not an object");
    for (const auto& [key, text_value] : value.items()) {
      if (!text_value.is_string()) parser.fail("__metadata__ " + show_name(key) + " is not a string");
      header.metadata.emplace_back(key, text_value.get<std::string>());
    }
  }
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
              return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
            });
  parser.check_tiling(header.tensors);
  return header;
}

SafetensorsFile SafetensorsFile::open(const std::string& path) {
  const auto fail = [&](ErrorKind kind, const std::string& what) { throw Error(kind, path + ": " + what); };
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(ErrorKind::kNotFound, std::strerror(errno));
  SafetensorsFile file;
  file.path_ = path;
  struct stat info {};
  const bool regular = fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  void* map = MAP_FAILED;
  int error = 0;
  if (regular && info.st_size > 0) {
    file.size_ = static_cast<size_t>(info.st_size);
    map = mmap(nullptr, file.size_, PROT_READ, MAP_SHARED, fd, 0);
    error = errno;
  }
  ::close(fd);
  if (!regular) fail(ErrorKind::kCorrupt, "not a regular file");
  if (info.st_size == 0) fail(ErrorKind::kCorrupt, "not a valid safetensors file: it is empty");
  if (map == MAP_FAILED) {
    file.size_ = 0;
    fail(ErrorKind::kResourceExhausted,
         fmt::format("cannot map {} bytes: {}", info.st_size, std::strerror(error)));
  }
  file.map_ = static_cast<const std::byte*>(map);
  file.header_ = parse_safetensors_header({file.map_, file.size_}, file.size_, path);
  file.index_.reserve(file.header_.tensors.size());
  for (size_t i = 0; i < file.header_.tensors.size(); ++i)
    file.index_.emplace(file.header_.tensors[i].name, i);
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  if (map_) munmap(const_cast<std::byte*>(map_), size_);
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& o) noexcept
    : path_(std::move(o.path_)),
      header_(std::move(o.header_)),
      index_(std::move(o.index_)),
      map_(std::exchange(o.map_, nullptr)),
      size_(std::exchange(o.size_, 0)) {}

SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&& o) noexcept {
  std::swap(path_, o.path_);
  std::swap(header_, o.header_);
  std::swap(index_, o.index_);
  std::swap(map_, o.map_);
  std::swap(size_, o.size_);
  return *this;
}

const SafetensorsEntry* SafetensorsFile::find(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &header_.tensors[it->second];
}

}  // namespace duet
