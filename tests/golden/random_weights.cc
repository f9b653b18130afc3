#include "golden/random_weights.h"

#include <cmath>
#include <random>

#include "base/error.h"
#include "load/safetensors.h"

namespace duet {

namespace {

struct Normal {
  double mean, deviation;
};

// Inputs of matrices are of order one (they come from a norm), so 1 / sqrt(inputs) keeps them there.
Normal distribution(const std::string& name, int64_t inputs) {
  const double keep = 1.0 / std::sqrt(static_cast<double>(inputs));
  const auto is = [&](const char* part) { return name.find(part) != std::string::npos; };
  if (is("embed_tokens")) return {0, 1};
  if (is("norm.weight")) return {1, 0.2};
  if (is("_proj.bias")) return {0, 0.5};
  if (is("e_score_correction_bias")) return {0, 0.1};
  if (is("gate.weight")) return {0, 2 * keep};  // scores far apart
  // Attention scores of a deviation near 2: a few keys get most of the weight.
  if (is("q_proj") || is("q_b_proj") || is("kv_a_proj") || is("kv_b_proj")) return {0, 1.4 * keep};
  return {0, keep};
}

}  // namespace

const RandomWeights::Tensor& RandomWeights::tensor(const std::string& name,
                                                   const std::vector<int64_t>& shape) const {
  const auto known = tensors_.find(name);
  if (known != tensors_.end()) {
    DUET_CHECK(known->second.shape == shape);
    return known->second;
  }
  uint64_t key = seed_;
  for (const char c : name) key = (key ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  std::mt19937_64 rng(key);
  const Normal normal = distribution(name, shape.back());
  std::normal_distribution<double> draw(normal.mean, normal.deviation);
  size_t count = 1;
  for (int64_t extent : shape) count *= static_cast<size_t>(extent);
  std::vector<float> values(count);
  for (float& v : values) v = static_cast<float>(draw(rng));
  Tensor t{name.ends_with("correction_bias") ? DType::kF32 : dtype_, shape, {}};
  t.bytes.resize(count * dtype_bytes(t.dtype));
  convert_from_f32(values.data(), t.dtype, t.bytes.data(), count);
  return tensors_.emplace(name, std::move(t)).first->second;
}

LoadedMatrix RandomWeights::matrix(const std::string& name, int64_t rows, int64_t cols, Slice row_slice,
                                   Slice col_slice) const {
  const Tensor& t = tensor(name, {rows, cols});
  LoadedMatrix result;
  result.view = {
      t.bytes.data() + static_cast<size_t>(row_slice.begin * cols + col_slice.begin) * dtype_bytes(t.dtype),
      t.dtype,
      row_slice.size(),
      col_slice.size(),
      cols,
      1};
  return result;
}

std::vector<float> RandomWeights::vector_f32(const std::string& name, int64_t length, Slice slice) const {
  const Tensor& t = tensor(name, {length});
  std::vector<float> values(static_cast<size_t>(length));
  convert_to_f32(t.bytes.data(), t.dtype, values.data(), values.size());
  return {values.begin() + slice.begin, values.begin() + slice.end};
}

std::unique_ptr<EmbeddingTable> RandomWeights::embedding(const std::string&, int64_t, int64_t) const {
  throw Error(ErrorKind::kUnsupported, "random weights have no embedding table: write a checkpoint");
}

std::vector<std::string> RandomWeights::names() const {
  std::vector<std::string> names;
  for (const auto& [name, unused] : tensors_) names.push_back(name);
  return names;
}

void RandomWeights::write(const std::string& path) const {
  std::vector<SafetensorsTensor> list;
  for (const auto& [name, t] : tensors_) list.push_back({{name, t.dtype, t.shape}, t.bytes.data()});
  write_safetensors(path, list);
}

}  // namespace duet
