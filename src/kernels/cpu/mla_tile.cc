#include "kernels/cpu/mla_tile.h"

#include <cstring>

namespace duet::mla {

namespace {

/// Calls body(slot, index, count) for runs of positions that are neighbours in the cache.
template <typename Body>
void for_runs(const LatentCache& cache, const int32_t* block_table, int64_t first, int64_t keys, Body body) {
  for (int64_t done = 0; done < keys;) {
    const int64_t position = first + done;
    const int64_t inside = position % cache.block_size;
    const int64_t count = std::min(keys - done, cache.block_size - inside);
    body(int64_t{block_table[position / cache.block_size]} * cache.block_size + inside, done, count);
    done += count;
  }
}

}  // namespace

void load_rows(const Job& job, const int32_t* block_table, int64_t first, int64_t keys, float* out) {
  const int64_t width = job.width();
  const auto* base = static_cast<const std::byte*>(job.cache.data);
  const int64_t row_bytes = width * static_cast<int64_t>(dtype_bytes(job.cache.dtype));
  for_runs(job.cache, block_table, first, keys, [&](int64_t slot, int64_t index, int64_t count) {
    const std::byte* from = base + slot * row_bytes;
    float* to = out + index * width;
    if (job.cache.dtype == DType::kF16) {
      job.rows.f16_to_f32(reinterpret_cast<const uint16_t*>(from), count * width, to);
    } else {
      convert_to_f32(from, job.cache.dtype, to, static_cast<size_t>(count * width));
    }
  });
}

void copy_rows(const Job& job, const int32_t* block_table, int64_t first, int64_t keys, void* out) {
  const auto* base = static_cast<const std::byte*>(job.cache.data);
  const int64_t row_bytes = job.width() * static_cast<int64_t>(dtype_bytes(job.cache.dtype));
  for_runs(job.cache, block_table, first, keys, [&](int64_t slot, int64_t index, int64_t count) {
    std::memcpy(static_cast<std::byte*>(out) + index * row_bytes, base + slot * row_bytes,
                static_cast<size_t>(count * row_bytes));
  });
}

void prefetch_rows(const Job& job, const int32_t* block_table, int64_t first, int64_t keys) {
  constexpr int64_t kLine = 64;
  const auto* base = static_cast<const std::byte*>(job.cache.data);
  const int64_t row_bytes = job.width() * static_cast<int64_t>(dtype_bytes(job.cache.dtype));
  for_runs(job.cache, block_table, first, keys, [&](int64_t slot, int64_t, int64_t count) {
    const std::byte* from = base + slot * row_bytes;
    for (int64_t b = 0; b < count * row_bytes; b += kLine) __builtin_prefetch(from + b, 0, 2);
  });
}

void pack_keys(const Job& job, const float* a, int64_t lda, int64_t na, const float* b, int64_t ldb,
               int64_t nb, int64_t keys, std::byte* temp, void* out) {
  const int64_t k = na + nb;
  const bool bf16 = tile_dtype(job.cx.rounding) == DType::kBf16;
  const int64_t units = bf16 ? (k + 1) / 2 : k;
  auto* to = static_cast<uint32_t*>(out);
  for (int64_t key = 0; key < keys; key += kPanelColumns, to += units * kPanelColumns) {
    const int64_t count = std::min(kPanelColumns, keys - key);
    for (int64_t r = 0; r < count; ++r) {
      const float* from_a = a + (key + r) * lda;
      const float* from_b = b + (key + r) * ldb;
      if (bf16) {
        auto* row = reinterpret_cast<bf16_t*>(temp) + r * 2 * units;
        f32_to_bf16(from_a, row, static_cast<size_t>(na));
        f32_to_bf16(from_b, row + na, static_cast<size_t>(nb));
        if (k % 2) row[k] = bf16_t{0};
      } else {
        auto* row = reinterpret_cast<float*>(temp) + r * k;
        std::memcpy(row, from_a, static_cast<size_t>(na) * sizeof(float));
        std::memcpy(row + na, from_b, static_cast<size_t>(nb) * sizeof(float));
        if (job.cx.rounding == Rounding::kF16) job.rows.round_f16(row, k);
      }
    }
    job.rows.pack_columns(reinterpret_cast<const uint32_t*>(temp), units, count, units, to);
  }
}

void pack_values(const Job& job, const float* values, int64_t stride, int64_t n, int64_t keys,
                 std::byte* temp, void* out) {
  if (tile_dtype(job.cx.rounding) == DType::kBf16) {
    auto* rows = reinterpret_cast<bf16_t*>(temp);
    for (int64_t key = 0; key < keys; ++key) {
      f32_to_bf16(values + key * stride, rows + key * n, static_cast<size_t>(n));
    }
    job.rows.pack_rows_bf16(reinterpret_cast<const uint16_t*>(temp), n, keys, n, static_cast<uint16_t*>(out));
    return;
  }
  if (job.cx.rounding == Rounding::kF16) {
    auto* rows = reinterpret_cast<float*>(temp);
    for (int64_t key = 0; key < keys; ++key) {
      std::memcpy(rows + key * n, values + key * stride, static_cast<size_t>(n) * sizeof(float));
    }
    job.rows.round_f16(rows, keys * n);
    values = rows;
    stride = n;
  }
  job.rows.pack_rows_f32(values, stride, keys, n, static_cast<float*>(out));
}

}  // namespace duet::mla
