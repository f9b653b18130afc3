#include "comm/wire.h"

#include <algorithm>
#include <cstring>

#include "tensor/dtype.h"

// As in tensor/dtype.cc: clones are element-wise, so all give the same bits; sanitizer runtimes
// start after ifunc resolvers run, hence no clones there.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define DUET_CLONES __attribute__((target_clones("default", "avx2", "arch=skylake-avx512")))
#else
#define DUET_CLONES
#endif

namespace duet::wire {
namespace {

// Accumulators of one block stay in the first-level cache (8 KiB) while the ranks' values pass by.
constexpr size_t kBlock = 2048;

DUET_CLONES void add_f32(const float* __restrict in, float* __restrict acc, size_t count) {
  for (size_t i = 0; i < count; ++i) acc[i] += in[i];
}

DUET_CLONES void add_bf16(const uint16_t* __restrict in, float* __restrict acc, size_t count) {
  for (size_t i = 0; i < count; ++i) acc[i] += std::bit_cast<float>(static_cast<uint32_t>(in[i]) << 16);
}

void add_values(const std::byte* in, DType dtype, float* acc, size_t count) {
  if (dtype == DType::kBf16) {
    add_bf16(reinterpret_cast<const uint16_t*>(in), acc, count);
  } else {
    add_f32(reinterpret_cast<const float*>(in), acc, count);
  }
}

// acc = Σ_r sources[r][first …]
void sum_block(std::span<const std::byte* const> sources, DType dtype, size_t first, float* acc,
               size_t count) {
  const size_t skip = first * dtype_bytes(dtype);
  convert_to_f32(sources[0] + skip, dtype, acc, count);
  for (size_t r = 1; r < sources.size(); ++r) add_values(sources[r] + skip, dtype, acc, count);
}

}  // namespace

void encode(ConstRows in, DType dtype, std::byte* out) {
  if (in.rows == 0 || in.cols == 0) return;
  if (is_dense(in)) {
    convert_from_f32(in.data, dtype, out, static_cast<size_t>(in.rows * in.cols));
    return;
  }
  const auto cols = static_cast<size_t>(in.cols);
  for (int64_t r = 0; r < in.rows; ++r, out += cols * dtype_bytes(dtype)) {
    convert_from_f32(in.row(r), dtype, out, cols);
  }
}

void decode(const std::byte* in, DType dtype, Rows out, bool add) {
  if (out.rows == 0 || out.cols == 0) return;
  const bool dense = is_dense(out);
  const int64_t rows = dense ? 1 : out.rows;
  const auto cols = static_cast<size_t>(dense ? out.rows * out.cols : out.cols);
  for (int64_t r = 0; r < rows; ++r, in += cols * dtype_bytes(dtype)) {
    if (add) {
      add_values(in, dtype, out.row(r), cols);
    } else {
      convert_to_f32(in, dtype, out.row(r), cols);
    }
  }
}

void ordered_sum(std::span<const std::byte* const> sources, DType dtype, Rows out, bool add) {
  if (out.rows == 0 || out.cols == 0) return;
  const bool dense = is_dense(out);
  const int64_t rows = dense ? 1 : out.rows;
  const auto cols = static_cast<size_t>(dense ? out.rows * out.cols : out.cols);
  alignas(64) float acc[kBlock];
  for (int64_t r = 0; r < rows; ++r) {
    float* row = out.row(r);
    for (size_t c = 0; c < cols; c += kBlock) {
      const size_t count = std::min(kBlock, cols - c);
      const size_t first = static_cast<size_t>(r) * cols + c;
      sum_block(sources, dtype, first, acc, count);  // not into `row`: it may be a source
      if (add) {
        add_f32(acc, row + c, count);
      } else {
        std::memcpy(row + c, acc, count * sizeof(float));
      }
    }
  }
}

void ordered_sum_rounded(std::span<const std::byte* const> sources, DType dtype, std::byte* out,
                         size_t count) {
  alignas(64) float acc[kBlock];
  for (size_t first = 0; first < count; first += kBlock) {
    const size_t n = std::min(kBlock, count - first);
    sum_block(sources, dtype, first, acc, n);
    convert_from_f32(acc, dtype, out + first * dtype_bytes(dtype), n);
  }
}

}  // namespace duet::wire
