// What the tests of both kinds of attention share: random values, a paged cache, and a run of sequences in
// chunks.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "kernels/ops.h"

namespace duet {

inline constexpr Rounding kRoundings[] = {Rounding::kNone, Rounding::kBf16, Rounding::kF16};
inline constexpr DType kCacheTypes[] = {DType::kF32, DType::kBf16, DType::kF16};

inline std::vector<float> normal(int64_t n, uint32_t seed, float sigma = 1.0f) {
  std::mt19937 gen(seed);
  std::normal_distribution<float> dist(0.0f, sigma);
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = dist(gen);
  return v;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// The largest |got − want|; infinite when a difference is no number.
inline double worst_error(const std::vector<float>& got, const std::vector<float>& want) {
  double worst = 0.0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
  }
  return worst;
}

/// A cache filled with NaN, so that a read of anything unwritten shows, and the tables of sequences of these
/// lengths with shuffled physical blocks.
struct Paged {
  PagedCache cache;
  std::vector<std::byte> bytes;
  std::vector<std::vector<int32_t>> tables;

  /// `width`: elements of a cache row, of an int8 cache its bytes.
  Paged(DType type, int block_size, int64_t width, std::span<const int64_t> lengths, uint32_t seed) {
    const auto blocks_of = [&](int64_t length) { return (length + block_size - 1) / block_size; };
    int64_t blocks = 0;
    for (int64_t length : lengths) blocks += blocks_of(length) + 1;
    std::vector<int32_t> order(static_cast<size_t>(blocks));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    size_t next = 0;
    for (int64_t length : lengths) {
      auto& table = tables.emplace_back();
      for (int64_t b = 0; b < blocks_of(length); ++b) table.push_back(order[next++]);
    }
    const auto elements = static_cast<size_t>(blocks * block_size * width);
    bytes.resize(elements * dtype_bytes(type));
    if (type == DType::kI8) {
      std::fill(bytes.begin(), bytes.end(), std::byte{0xff});  // scales of NaN
    } else {
      const std::vector<float> nan(elements, std::numeric_limits<float>::quiet_NaN());
      convert_from_f32(nan.data(), type, bytes.data(), elements);
    }
    cache = {bytes.data(), type, block_size};
  }

  /// Cache rows of a sequence's positions.
  std::vector<int64_t> slots(size_t sequence, int64_t first, int64_t rows) const {
    std::vector<int64_t> s;
    for (int64_t p = first; p < first + rows; ++p)
      s.push_back(int64_t{tables[sequence][static_cast<size_t>(p / cache.block_size)]} * cache.block_size +
                  p % cache.block_size);
    return s;
  }
};

template <typename Sequence>
std::vector<int64_t> lengths_of(std::span<const Sequence> sequences) {
  std::vector<int64_t> lengths;
  for (const Sequence& s : sequences) lengths.push_back(s.length);
  return lengths;
}

/// Runs every sequence from its start in chunks of `chunk` tokens; all sequences take part in each call.
/// write(sequence, first, rows) fills the cache, attend(q, spans, out) computes, form_of(rows) is a span's
/// form. Returns the outputs [length, out_cols()] of each sequence.
template <typename Sequence, typename FormOf, typename Write, typename Attend>
std::vector<std::vector<float>> run_in_chunks(const Paged& paged, std::span<const Sequence> sequences,
                                              int64_t chunk, const FormOf& form_of, const Write& write,
                                              const Attend& attend) {
  std::vector<std::vector<float>> result;
  int64_t longest = 0;
  for (const Sequence& s : sequences) {
    result.emplace_back(static_cast<size_t>(s.length * s.out_cols()));
    longest = std::max(longest, s.length);
  }
  const int64_t q_cols = sequences[0].q_cols(), out_cols = sequences[0].out_cols();
  for (int64_t start = 0; start < longest; start += chunk) {
    std::vector<AttentionSpan> spans;
    std::vector<size_t> owner;
    std::vector<float> q;
    int64_t rows = 0;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const Sequence& s = sequences[i];
      const int64_t n = std::min(chunk, s.length - start);
      if (n <= 0) continue;
      write(i, start, n);
      q.insert(q.end(), s.q.begin() + start * q_cols, s.q.begin() + (start + n) * q_cols);
      spans.push_back({rows, n, start, form_of(n), paged.tables[i].data(), n < s.length});
      owner.push_back(i);
      rows += n;
    }
    std::vector<float> out(static_cast<size_t>(rows * out_cols), -77.0f);
    attend(ConstRows(q.data(), rows, q_cols), spans, Rows(out.data(), rows, out_cols));
    for (size_t j = 0; j < spans.size(); ++j) {
      std::copy_n(out.begin() + spans[j].first_row * out_cols, spans[j].rows * out_cols,
                  result[owner[j]].begin() + start * out_cols);
    }
  }
  return result;
}

}  // namespace duet
