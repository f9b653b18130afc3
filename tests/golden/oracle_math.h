// The few float64 operations that the oracle is made of. Included by oracle*.cc only.
#pragma once

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "golden/oracle.h"

namespace duet::oracle {

using Vector = Oracle::Vector;
using Matrix = Oracle::Matrix;
using Json = nlohmann::json;

template <typename T>
T value_or(const Json& json, const char* key, T absent) {
  const auto it = json.find(key);
  return it == json.end() || it->is_null() ? absent : it->get<T>();
}

inline double yarn_temperature(double factor, double mscale) {
  return factor > 1 ? 0.1 * mscale * std::log(factor) + 1 : 1;
}

inline size_t index(int64_t i) {
  return static_cast<size_t>(i);
}

inline Matrix read_matrix(const WeightSource& source, const std::string& name, int64_t rows, int64_t cols) {
  const LoadedMatrix loaded = source.matrix(name, rows, cols);
  const WeightView& w = loaded.view;
  Matrix m(index(rows), Vector(index(cols)));
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t k = 0; k < cols; ++k) {
      const int64_t at = n * w.row_stride + k * w.col_stride;
      float value = 0;
      if (w.dtype == DType::kF32) value = static_cast<const float*>(w.data)[at];
      if (w.dtype == DType::kBf16) value = to_f32(static_cast<const bf16_t*>(w.data)[at]);
      if (w.dtype == DType::kF16) value = to_f32(static_cast<const f16_t*>(w.data)[at]);
      m[index(n)][index(k)] = value;
    }
  }
  return m;
}

inline Vector read_vector(const WeightSource& source, const std::string& name, int64_t length) {
  const std::vector<float> values = source.vector_f32(name, length);
  return {values.begin(), values.end()};
}

inline double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

inline Vector times(const Matrix& w, const Vector& x) {
  Vector y;
  for (const Vector& row : w) y.push_back(dot(row.data(), x.data(), static_cast<int64_t>(x.size())));
  return y;
}

inline void add(Vector& x, const Vector& y, double weight = 1) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += weight * y[i];
}

inline Vector softmax(Vector x) {
  const double top = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& v : x) sum += v = std::exp(v - top);
  for (double& v : x) v /= sum;
  return x;
}

inline double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

}  // namespace duet::oracle
