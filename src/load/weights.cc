#include "load/weights.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string_view>
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

/// "model.layers.0.mlp.up_proj" of "model.layers.0.mlp.up_proj.weight".
std::string module_of(const std::string& name) {
  constexpr std::string_view kSuffix = ".weight";
  return name.ends_with(kSuffix) ? name.substr(0, name.size() - kSuffix.size()) : name;
}

/// What a quantised checkpoint stores as floats, whatever `ignore` says: no Linear there is the router, nor
/// the embedding that doubles as head.
bool is_no_linear(const std::string& module) {
  return module.ends_with(".mlp.gate") || module == "model.embed_tokens";
}

class CheckpointWeights final : public WeightSource {
 public:
  CheckpointWeights(std::shared_ptr<const Checkpoint> checkpoint, QuantConfig quant)
      : checkpoint_(std::move(checkpoint)), quant_(std::move(quant)) {}

  bool has(const std::string& name) const override { return checkpoint_->find(name) != nullptr; }

  LoadedMatrix matrix(const std::string& name, int64_t rows, int64_t cols, Slice row_slice,
                      Slice col_slice) const override {
    check_slice(row_slice, rows);
    check_slice(col_slice, cols);
    const TensorInfo& info = checkpoint_->require(name, std::array<int64_t, 2>{rows, cols});
    const DType dtype = matrix_dtype(info);
    const size_t size = dtype_bytes(dtype);
    const std::byte* from = info.data + static_cast<size_t>(row_slice.begin * cols + col_slice.begin) * size;
    LoadedMatrix result;
    result.view = {from, dtype, row_slice.size(), col_slice.size(), cols, 1, {}};
    if (row_slice.size() > 0) {
      result.mapped = MappedRange(info.data + static_cast<size_t>(row_slice.begin * cols) * size,
                                  static_cast<size_t>(row_slice.size() * cols) * size);
    }
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
    if (dtype == DType::kF8E4M3) add_block_scales(name, rows, cols, row_slice, col_slice, result);
    if (dtype == DType::kI8) add_row_scales(name, rows, row_slice, result);
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
  static bool is_float(const TensorInfo& info) {
    return info.dtype == DType::kF32 || info.dtype == DType::kBf16 || info.dtype == DType::kF16;
  }

  std::pair<const TensorInfo&, DType> require_float(const std::string& name,
                                                    std::span<const int64_t> shape) const {
    const TensorInfo& info = checkpoint_->require(name, shape);
    if (!is_float(info)) {
      throw Error(ErrorKind::kUnsupported,
                  fmt::format("{}: tensor \"{}\" has dtype {}; supported here are F32, BF16 and F16",
                              info.file, name, info.dtype_name));
    }
    return {info, *info.dtype};
  }

  /// The tensor's dtype, if it is what the config lets expect.
  DType matrix_dtype(const TensorInfo& info) const {
    const std::string module = module_of(info.name);
    const bool fp8 = quant_.format == WeightFormat::kFp8Block;
    const bool int8 = quant_.format == WeightFormat::kInt8;
    const bool quantised = quant_.quantised(module);
    if (is_float(info)) {
      // fp8 checkpoints say nowhere what stays as it was.
      if (int8 && quantised && !is_no_linear(module)) {
        throw Error(ErrorKind::kCorrupt,
                    fmt::format("{}: tensor \"{}\" has dtype {}, but the quantisation ({}) names it as int8",
                                info.file, info.name, info.dtype_name, quant_.layout));
      }
      return *info.dtype;
    }
    if ((info.dtype == DType::kF8E4M3 && fp8) || (info.dtype == DType::kI8 && int8 && quantised)) {
      return *info.dtype;
    }
    const std::string why = info.dtype != DType::kF8E4M3 && info.dtype != DType::kI8
                                ? "supported are F32, BF16, F16, F8_E4M3 and I8"
                            : quant_.format == WeightFormat::kFloat
                                ? "config.json has no quantization_config that says how to read it"
                            : quantised ? "the quantisation is " + quant_.layout
                                        : "the quantisation (" + quant_.layout + ") names it as unquantised";
    throw Error(ErrorKind::kUnsupported, fmt::format("{}: tensor \"{}\" has dtype {}; {}", info.file,
                                                     info.name, info.dtype_name, why));
  }

  /// A tensor of scales, widened and checked.
  std::vector<float> scales(const std::string& name, std::span<const int64_t> shape, int64_t first,
                            int64_t count) const {
    const auto [info, dtype] = require_float(name, shape);
    const size_t size = dtype_bytes(dtype);
    AlignedBuffer copy(static_cast<size_t>(count) * size);
    std::vector<float> values(static_cast<size_t>(count));
    if (count == 0) return values;
    std::memcpy(copy.data(), info.data + static_cast<size_t>(first) * size, copy.size());
    convert_to_f32(copy.data(), dtype, values.data(), values.size());
    for (const float v : values) {
      if (!std::isfinite(v)) {
        throw Error(ErrorKind::kCorrupt,
                    fmt::format("{}: tensor \"{}\" holds {}; expected finite scales", info.file, name, v));
      }
    }
    return values;
  }

  void add_block_scales(const std::string& name, int64_t rows, int64_t cols, Slice row_slice, Slice col_slice,
                        LoadedMatrix& m) const {
    const int64_t br = quant_.block_rows, bc = quant_.block_cols;
    const std::array<int64_t, 2> shape{(rows + br - 1) / br, (cols + bc - 1) / bc};
    // The slice's rows of blocks, of all columns: a slice may begin and end inside a block.
    const int64_t first = row_slice.begin / br;
    const int64_t end = row_slice.size() > 0 ? (row_slice.end - 1) / br + 1 : first;
    m.scales = scales(name + "_scale_inv", shape, first * shape[1], (end - first) * shape[1]);
    m.view.scales = {m.scales.data() + col_slice.begin / bc,
                     br,
                     bc,
                     row_slice.begin % br,
                     col_slice.begin % bc,
                     shape[1],
                     1};
  }

  void add_row_scales(const std::string& name, int64_t rows, Slice row_slice, LoadedMatrix& m) const {
    const auto shape_of = [&](const std::string& tensor) {
      const TensorInfo* info = checkpoint_->find(tensor);  // [rows] and [rows, 1] are both published
      return info && info->shape.size() == 1 ? std::vector<int64_t>{rows} : std::vector<int64_t>{rows, 1};
    };
    m.scales = scales(name + "_scale", shape_of(name + "_scale"), row_slice.begin, row_slice.size());
    m.view.scales = {m.scales.data(), 1, 1, 0, 0, 1, 0};
    for (const char* suffix : {"_offset", "_zero_point"}) {
      if (!has(name + suffix)) continue;
      const TensorInfo& info = checkpoint_->require(name + suffix, shape_of(name + suffix));
      if (std::any_of(info.data, info.data + info.bytes, [](std::byte b) { return b != std::byte{0}; })) {
        throw Error(ErrorKind::kUnsupported,
                    fmt::format("{}: tensor \"{}\" is not zero; only symmetric quantisation is supported",
                                info.file, info.name));
      }
    }
  }

  std::shared_ptr<const Checkpoint> checkpoint_;
  QuantConfig quant_;
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

MappedRange::~MappedRange() {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(begin_) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(begin_) + bytes_) / page * page;
  // Whole pages only; what is read again comes back from the page cache.
  if (begin_ && begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

std::unique_ptr<WeightSource> checkpoint_weights(std::shared_ptr<const Checkpoint> checkpoint,
                                                 const QuantConfig& quant) {
  return std::make_unique<CheckpointWeights>(std::move(checkpoint), quant);
}

}  // namespace duet
