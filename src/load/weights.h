// Where a model gets its weights from: a mapped checkpoint or seeded dummy values, one interface.
// Called while a rank packs its shard, and per step for embedding rows. A caller asks for the
// slice that its rank needs; only that slice is read from disk, or generated.
// Always holds: const functions may be called from several threads (ranks) at once; views into a
// mapping live as long as the source.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "load/quant_config.h"
#include "load/shard.h"
#include "tensor/arena.h"
#include "tensor/dtype.h"
#include "tensor/view.h"

namespace duet {

class Checkpoint;

/// Tells the system, when it goes, that pages of a mapping are not needed any more: a rank's resident
/// memory then holds its packed weights and not the checkpoint beside them.
class MappedRange {
 public:
  MappedRange() = default;
  MappedRange(const std::byte* begin, size_t bytes) : begin_(begin), bytes_(bytes) {}
  ~MappedRange();
  MappedRange(MappedRange&& o) noexcept { *this = std::move(o); }
  MappedRange& operator=(MappedRange&& o) noexcept {
    std::swap(begin_, o.begin_);
    std::swap(bytes_, o.bytes_);
    return *this;
  }

 private:
  const std::byte* begin_ = nullptr;
  size_t bytes_ = 0;
};

/// A slice of a weight matrix. `owned` is empty when the view points into the mapping. Quantised ones
/// carry their scales: view.scales points into `scales`.
struct LoadedMatrix {
  WeightView view;
  AlignedBuffer owned;
  std::vector<float> scales;
  MappedRange mapped;
};

/// Rows of a [rows, cols] table as float32; the name is resolved and the shape checked once.
class EmbeddingTable {
 public:
  EmbeddingTable(int64_t rows, int64_t cols) : rows_(rows), cols_(cols) {}
  virtual ~EmbeddingTable() = default;
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  /// Writes cols() floats. Throws Error(kInvalidArgument) when `row` is not in [0, rows()).
  void lookup(int64_t row, float* out) const;

 private:
  virtual void read_row(int64_t row, float* out) const = 0;
  int64_t rows_;
  int64_t cols_;
};

/// Errors of every function: kNotFound for a missing tensor, kCorrupt for another shape (names
/// file, tensor, expected and found), kUnsupported for a dtype other than f32, bf16, f16 or, in a
/// matrix, the one that quantization_config names.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  virtual bool has(const std::string& name) const = 0;
  /// Rows [row_slice), columns [col_slice) of the [rows, cols] matrix `name` ("….weight").
  virtual LoadedMatrix matrix(const std::string& name, int64_t rows, int64_t cols, Slice row_slice,
                              Slice col_slice) const = 0;
  /// The whole matrix.
  LoadedMatrix matrix(const std::string& name, int64_t rows, int64_t cols) const;
  /// Elements [slice) of the [length] vector `name` (norms, biases), widened.
  virtual std::vector<float> vector_f32(const std::string& name, int64_t length, Slice slice) const = 0;
  std::vector<float> vector_f32(const std::string& name, int64_t length) const;
  /// Must not outlive the source.
  virtual std::unique_ptr<EmbeddingTable> embedding(const std::string& name, int64_t rows,
                                                    int64_t cols) const = 0;
  /// Every tensor name, sorted; empty for dummy weights (which have any name).
  virtual std::vector<std::string> names() const = 0;
};

/// Weights of a mapped checkpoint: zero-copy, except where the file's data is not aligned.
std::unique_ptr<WeightSource> checkpoint_weights(std::shared_ptr<const Checkpoint> checkpoint,
                                                 const QuantConfig& quant = {});

struct DummyOptions {
  DType dtype = DType::kF32;  // values are rounded to it: f32, bf16 or f16
  uint64_t seed = 0;
  QuantConfig quant{};  // projections are then stored as it says, with one scale for all
};

/// Random weights without a file (--load-format dummy). Element i of tensor `name` depends on
/// (seed, name, i) alone, so every rank count sees the same model. About normal, standard
/// deviation 0.02; "…norm.weight" is 1, "….bias" is 0, "…e_score_correction_bias" has 0.01.
std::unique_ptr<WeightSource> dummy_weights(const DummyOptions& options);

}  // namespace duet
