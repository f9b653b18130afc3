// A random checkpoint whose activations are of order one, so that attention is far from uniform and a
// wrong scale, mask or rotation shows in the logits (dummy weights are too small for that).
// A tensor exists once it was asked for: let the oracle read its model, then write() the checkpoint.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "load/weights.h"

namespace duet {

class RandomWeights final : public WeightSource {
 public:
  /// Matrices and norms are stored as `dtype` (f32, bf16, f16), correction biases as f32, as published
  /// checkpoints do. Values depend on (seed, name) alone.
  RandomWeights(DType dtype, uint64_t seed) : dtype_(dtype), seed_(seed) {}

  using WeightSource::matrix;
  using WeightSource::vector_f32;
  bool has(const std::string&) const override { return true; }
  LoadedMatrix matrix(const std::string& name, int64_t rows, int64_t cols, Slice row_slice,
                      Slice col_slice) const override;
  std::vector<float> vector_f32(const std::string& name, int64_t length, Slice slice) const override;
  std::unique_ptr<EmbeddingTable> embedding(const std::string& name, int64_t rows,
                                            int64_t cols) const override;
  std::vector<std::string> names() const override;

  /// All tensors that were asked for so far, as `path`.
  void write(const std::string& path) const;

 private:
  struct Tensor {
    DType dtype;
    std::vector<int64_t> shape;
    std::vector<uint8_t> bytes;
  };
  const Tensor& tensor(const std::string& name, const std::vector<int64_t>& shape) const;

  DType dtype_;
  uint64_t seed_;
  mutable std::map<std::string, Tensor> tensors_;
};

}  // namespace duet
