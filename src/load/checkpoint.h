// The tensors of a Hugging Face directory, over one or many mapped safetensors files. Opened once
// per process (ranks that are threads share it) and read by checkpoint_weights().
// Always holds: a name is in exactly one file; every file's header has been checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "load/safetensors.h"
#include "tensor/dtype.h"

namespace duet {

struct TensorInfo {
  std::string name;
  std::string dtype_name;      // as in the file: "BF16"
  std::optional<DType> dtype;  // empty for a dtype that Duet has no type for
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;  // into the mapping; may be unaligned
  uint64_t bytes = 0;
  std::string file;
};

class Checkpoint {
 public:
  /// model.safetensors.index.json and the shards that it names, else model.safetensors, else the
  /// complete set model-00001-of-0000N.safetensors, else the only *.safetensors file. Throws
  /// kNotFound (directory, shard, no weights at all) and kCorrupt (a header, an index that names a
  /// tensor which its shard lacks, a tensor in two files); texts name file and tensor.
  static Checkpoint open(const std::string& model_dir);

  const std::string& dir() const { return dir_; }
  /// All tensors, sorted by name.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  /// nullptr when there is none.
  const TensorInfo* find(const std::string& name) const;
  /// Throws kNotFound when missing, kCorrupt when the shape differs.
  const TensorInfo& require(const std::string& name, std::span<const int64_t> expected_shape) const;
  /// Sum of the tensors' sizes.
  uint64_t total_bytes() const;

 private:
  Checkpoint() = default;
  void collect();
  std::string dir_;
  std::vector<SafetensorsFile> files_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string, size_t> index_;
};

}  // namespace duet
