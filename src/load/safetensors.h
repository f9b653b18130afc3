// Reads and writes the safetensors format (8-byte little-endian header length, JSON header, data).
// Called by Checkpoint and by `duet logits`. The header is a stranger's: every length, shape and
// offset is checked before it is believed, and errors name file and tensor.
// Always holds: the tensors of a parsed header tile the data area (as the published format
// demands): no overlap, no hole, nothing outside the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tensor/dtype.h"

namespace duet {

struct SafetensorsEntry {
  std::string name;
  std::string dtype_name;      // as in the file: "F32", "BF16", …
  std::optional<DType> dtype;  // empty for a published dtype that Duet has no type for
  std::vector<int64_t> shape;  // [] is a scalar
  uint64_t begin = 0;          // bytes from the start of the data area
  uint64_t end = 0;
};

struct SafetensorsHeader {
  uint64_t data_offset = 0;               // of the data area in the file
  std::vector<SafetensorsEntry> tensors;  // by ascending `begin`
  std::vector<std::pair<std::string, std::string>> metadata;
};

/// "[3, 64]", for messages.
std::string shape_to_string(std::span<const int64_t> shape);

/// `bytes`: the file's beginning, at least length field and header (more is ignored); `file_size`:
/// of the whole file. Throws Error(kCorrupt) for anything that the format forbids.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> bytes, uint64_t file_size,
                                           const std::string& file_name);

/// One mapped file, read-only. Move-only; pages are read when touched.
class SafetensorsFile {
 public:
  /// Throws kNotFound (no such file), kCorrupt.
  static SafetensorsFile open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&& o) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&& o) noexcept;

  const std::string& path() const { return path_; }
  const SafetensorsHeader& header() const { return header_; }
  /// nullptr when the file has no such tensor.
  const SafetensorsEntry* find(const std::string& name) const;
  /// entry.end − entry.begin bytes; may be unaligned for the dtype.
  const std::byte* data(const SafetensorsEntry& entry) const {
    return map_ + header_.data_offset + entry.begin;
  }

 private:
  SafetensorsFile() = default;
  std::string path_;
  SafetensorsHeader header_;
  std::unordered_map<std::string, size_t> index_;
  const std::byte* map_ = nullptr;
  size_t size_ = 0;
};

struct SafetensorsDecl {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
};

/// Writes a file whose tensors are declared at the start and filled in any order and in pieces.
/// The file appears under its name only at finish(); until then it is "<path>.tmp.<pid>", which a
/// writer that is destroyed unfinished removes. Disk space is reserved up front where the file
/// system can. Errors: kInvalidArgument (declaration, path), kResourceExhausted (disk full).
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::string& path, std::vector<SafetensorsDecl> tensors,
                    std::vector<std::pair<std::string, std::string>> metadata = {});
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  /// `count` elements of tensor `index` (position in the declaration) from element `offset` on.
  void write(size_t index, int64_t offset, const void* data, int64_t count);
  /// Checks that every tensor got all its elements, then renames into place.
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct SafetensorsTensor {
  SafetensorsDecl decl;
  const void* data = nullptr;
};

/// All at once.
void write_safetensors(const std::string& path, const std::vector<SafetensorsTensor>& tensors);

}  // namespace duet
