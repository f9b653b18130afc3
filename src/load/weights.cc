#include "load/weights.h"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "load/checkpoint.h"

namespace duet {

namespace {

void check_slice(Slice slice, int64_t total) {
  DUET_CHECK(0 <= slice.begin && slice.begin <= slice.end && slice.end <= total);
}

bool aligned(const void* data, DType dtype) {
  return reinterpret_cast<uintptr_t>(data) % dtype_bytes(dtype) == 0;
}

class MappedTable final : public EmbeddingTable {
 public:
  MappedTable(const std::byte* data, DType dtype, int64_t rows, int64_t cols)
      : EmbeddingTable(rows, cols), data_(data), dtype_(dtype) {}

 private:
  void read_row(int64_t row, float* out) const override {
    const auto count = static_cast<size_t>(cols());
    const size_t bytes = count * dtype_bytes(dtype_);
    const std::byte* from = data_ + static_cast<size_t>(row) * bytes;
    if (aligned(from, dtype_)) {
      convert_to_f32(from, dtype_, out, count);
      return;
    }
    AlignedBuffer copy(bytes);
    std::memcpy(copy.data(), from, bytes);
    convert_to_f32(copy.data(), dtype_, out, count);
  }

  const std::byte* data_;
  DType dtype_;
};

class CheckpointWeights final : public WeightSource {
 public:
  explicit CheckpointWeights(std::shared_ptr<const Checkpoint> checkpoint)
      : checkpoint_(std::move(checkpoint)) {}

  bool has(const std::string& name) const override { return checkpoint_->find(name) != nullptr; }

  LoadedMatrix matrix(const std::string& name, int64_t rows, int64_t cols, Slice row_slice,
                      Slice col_slice) const override {
    check_slice(row_slice, rows);
    check_slice(col_slice, cols);
    const auto [info, dtype] = require_float(name, std::array<int64_t, 2>{rows, cols});
    const size_t size = dtype_bytes(dtype);
    const std::byte* from = info.data + static_cast<size_t>(row_slice.begin * cols + col_slice.begin) * size;
    LoadedMatrix result;
    result.view = {from, dtype, row_slice.size(), col_slice.size(), cols, 1};
    if (!aligned(info.data, dtype)) {  // the format allows a header of odd length
      const size_t row_bytes = static_cast<size_t>(col_slice.size()) * size;
      result.owned = AlignedBuffer(static_cast<size_t>(row_slice.size()) * row_bytes);
      for (int64_t r = 0; r < row_slice.size() && row_bytes > 0; ++r) {
        std::memcpy(result.owned.data() + static_cast<size_t>(r) * row_bytes,
                    from + static_cast<size_t>(r * cols) * size, row_bytes);
      }
      result.view.data = result.owned.data();
      result.view.row_stride = col_slice.size();
    }
    return result;
  }

  std::vector<float> vector_f32(const std::string& name, int64_t length, Slice slice) const override {
    check_slice(slice, length);
    const auto [info, dtype] = require_float(name, std::array<int64_t, 1>{length});
    const auto count = static_cast<size_t>(slice.size());
    AlignedBuffer copy(count * dtype_bytes(dtype));
    std::vector<float> values(count);
    if (count == 0) return values;
    std::memcpy(copy.data(), info.data + static_cast<size_t>(slice.begin) * dtype_bytes(dtype), copy.size());
    convert_to_f32(copy.data(), dtype, values.data(), count);
    return values;
  }

  std::unique_ptr<EmbeddingTable> embedding(const std::string& name, int64_t rows,
                                            int64_t cols) const override {
    const auto [info, dtype] = require_float(name, std::array<int64_t, 2>{rows, cols});
    return std::make_unique<MappedTable>(info.data, dtype, rows, cols);
  }

  std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const TensorInfo& info : checkpoint_->tensors()) names.push_back(info.name);
    return names;
  }

 private:
  std::pair<const TensorInfo&, DType> require_float(const std::string& name,
                                                    std::span<const int64_t> shape) const {
    const TensorInfo& info = checkpoint_->require(name, shape);
    if (info.dtype != DType::kF32 && info.dtype != DType::kBf16 && info.dtype != DType::kF16) {
      throw Error(ErrorKind::kUnsupported,
                  fmt::format("{}: tensor \"{}\" has dtype {}; supported are F32, BF16 and F16 (quantised "
                              "checkpoints are not supported yet)",
                              info.file, name, info.dtype_name));
    }
    return {info, *info.dtype};
  }

  std::shared_ptr<const Checkpoint> checkpoint_;
};

}  // namespace

void EmbeddingTable::lookup(int64_t row, float* out) const {
  if (row < 0 || row >= rows_) {
    throw Error(ErrorKind::kInvalidArgument, fmt::format("token id {} is not in [0, {})", row, rows_));
  }
  read_row(row, out);
}

LoadedMatrix WeightSource::matrix(const std::string& name, int64_t rows, int64_t cols) const {
  return matrix(name, rows, cols, {0, rows}, {0, cols});
}

std::vector<float> WeightSource::vector_f32(const std::string& name, int64_t length) const {
  return vector_f32(name, length, {0, length});
}

std::unique_ptr<WeightSource> checkpoint_weights(std::shared_ptr<const Checkpoint> checkpoint) {
  return std::make_unique<CheckpointWeights>(std::move(checkpoint));
}

}  // namespace duet
