#include "kernels/cpu/attention_tile.h"

#include <cmath>
#include <cstring>

namespace duet::attention {

namespace {

constexpr int64_t kPiece = 256;  // floats that are rounded at a time

/// Calls body(address, index, count) for runs of positions that are neighbours in the cache.
template <typename Body>
void for_runs(const CacheRows& cache, const int32_t* block_table, int64_t first, int64_t keys, Body body) {
  for (int64_t done = 0; done < keys;) {
    const int64_t position = first + done;
    const int64_t inside = position % cache.block_size;
    const int64_t count = std::min(keys - done, cache.block_size - inside);
    body(row_at(cache, block_table, position), done, count);
    done += count;
  }
}

}  // namespace

void attend(const KernelContext& cx, const RowKernels& kernels, const TileStep& step, std::byte* gemm) {
  const DType dtype = tile_dtype(cx.rounding);
  const SoftmaxTile& tile = step.tile;
  const Rows scores{tile.scores, tile.rows, tile.keys, tile.stride};
  gemm_single(cx.level, cx.rounding, step.q, {step.keys, dtype, tile.keys, step.q.cols}, scores,
              Accumulate::kNo, gemm);
  kernels.softmax(tile);
  if (!tile.first) correct(kernels, tile, step.out);
  // Only what the last of these rows sees: to the others the rest would add products with 0, which change
  // nothing.
  const PackedView values{step.values, dtype, step.out.cols, tile.stride};
  gemm_single(cx.level, cx.rounding, scores, values.first_k(tile.keys), step.out,
              tile.first ? Accumulate::kNo : Accumulate::kYes, gemm);
}

void correct(const RowKernels& kernels, const SoftmaxTile& tile, Rows out) {
  for (int64_t i = 0; i < out.rows; ++i) {
    if (!(tile.correction[i] == 1.0f)) kernels.scale(out.row(i), tile.correction[i], out.cols, out.row(i));
  }
}

void load_rows(const RowKernels& kernels, const CacheRows& cache, const int32_t* block_table, int64_t first,
               int64_t keys, float* out) {
  const int64_t width = cache.width;
  for_runs(cache, block_table, first, keys, [&](const std::byte* from, int64_t index, int64_t count) {
    float* to = out + index * width;
    if (cache.dtype == DType::kF16) {
      kernels.f16_to_f32(reinterpret_cast<const uint16_t*>(from), count * width, to);
    } else {
      convert_to_f32(from, cache.dtype, to, static_cast<size_t>(count * width));
    }
  });
}

void copy_rows(const CacheRows& cache, const int32_t* block_table, int64_t first, int64_t keys, void* out) {
  const int64_t row_bytes = cache.row_bytes;
  for_runs(cache, block_table, first, keys, [&](const std::byte* from, int64_t index, int64_t count) {
    std::memcpy(static_cast<std::byte*>(out) + index * row_bytes, from,
                static_cast<size_t>(count * row_bytes));
  });
}

void prefetch_rows(const CacheRows& cache, const int32_t* block_table, int64_t first, int64_t keys) {
  constexpr int64_t kLine = 64;
  const int64_t row_bytes = cache.row_bytes;
  for_runs(cache, block_table, first, keys, [&](const std::byte* from, int64_t, int64_t count) {
    for (int64_t b = 0; b < count * row_bytes; b += kLine) __builtin_prefetch(from + b, 0, 2);
  });
}

void round_in_place(const RowKernels& kernels, Rounding rounding, float* values, int64_t n) {
  if (rounding == Rounding::kF16) kernels.round_f16(values, n);
  if (rounding != Rounding::kBf16) return;
  bf16_t piece[kPiece];
  for (int64_t i = 0; i < n; i += kPiece) {
    const auto count = static_cast<size_t>(std::min(kPiece, n - i));
    f32_to_bf16(values + i, piece, count);
    convert_to_f32(piece, DType::kBf16, values + i, count);
  }
}

void store_rounded(const RowKernels& kernels, Rounding rounding, const float* from, int64_t n, DType dtype,
                   std::byte* to) {
  float piece[kPiece];
  const auto element = static_cast<int64_t>(dtype_bytes(dtype));
  for (int64_t i = 0; i < n; i += kPiece) {
    const int64_t count = std::min(kPiece, n - i);
    const float* source = from + i;
    if (rounding != Rounding::kNone && !(rounding == Rounding::kBf16 && dtype == DType::kBf16)) {
      std::copy_n(source, count, piece);
      round_in_place(kernels, rounding, piece, count);
      source = piece;
    }
    convert_from_f32(source, dtype, to + i * element, static_cast<size_t>(count));
  }
}

void pack_keys(const RowKernels& kernels, Rounding rounding, const float* a, int64_t lda, int64_t na,
               const float* b, int64_t ldb, int64_t nb, int64_t keys, std::byte* temp, void* out) {
  const int64_t k = na + nb;
  const bool bf16 = tile_dtype(rounding) == DType::kBf16;
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
        if (rounding == Rounding::kF16) kernels.round_f16(row, k);
      }
    }
    kernels.pack_columns(reinterpret_cast<const uint32_t*>(temp), units, count, units, to);
  }
}

void pack_values(const RowKernels& kernels, Rounding rounding, const float* values, int64_t stride, int64_t n,
                 int64_t keys, int64_t room, std::byte* temp, void* out) {
  if (tile_dtype(rounding) == DType::kBf16) {
    auto* rows = reinterpret_cast<bf16_t*>(temp);
    for (int64_t key = 0; key < keys; ++key) {
      f32_to_bf16(values + key * stride, rows + key * n, static_cast<size_t>(n));
    }
    kernels.pack_rows_bf16(reinterpret_cast<const uint16_t*>(temp), n, keys, n, static_cast<uint16_t*>(out),
                           value_panel(Rounding::kBf16, room));
    return;
  }
  if (rounding == Rounding::kF16) {
    auto* rows = reinterpret_cast<float*>(temp);
    for (int64_t key = 0; key < keys; ++key) {
      std::memcpy(rows + key * n, values + key * stride, static_cast<size_t>(n) * sizeof(float));
    }
    kernels.round_f16(rows, keys * n);
    values = rows;
    stride = n;
  }
  kernels.pack_rows_f32(values, stride, keys, n, static_cast<float*>(out), value_panel(rounding, room));
}

void pack_values_as_they_lie(const RowKernels& kernels, DType dtype, const std::byte* rows, int64_t stride,
                             int64_t columns, int64_t first, int64_t n, int64_t panel, std::byte* out) {
  const int64_t at = first * kPanelColumns;
  if (dtype == DType::kBf16) {
    kernels.pack_rows_bf16(reinterpret_cast<const uint16_t*>(rows), stride, n, columns,
                           reinterpret_cast<uint16_t*>(out) + at, panel);
  } else {
    kernels.pack_rows_f32(reinterpret_cast<const float*>(rows), stride, n, columns,
                          reinterpret_cast<float*>(out) + at, panel);
  }
}

bool any_spoilt(Rounding rounding, const float* values, int64_t stride, int64_t n, int64_t keys) {
  // f16's largest value, and the largest f32 that rounds to a finite bf16.
  const float limit = rounding == Rounding::kF16 ? 65504.0f : 3.3895e38f;
  bool spoilt = false;
  for (int64_t key = 0; key < keys; ++key) {
    const float* row = values + key * stride;
    for (int64_t d = 0; d < n; ++d) spoilt |= !(std::abs(row[d]) <= limit);
  }
  return spoilt;
}

void join_softmax(const RowKernels& kernels, float& max, float& sum, float* out, float later_max,
                  float later_sum, const float* later_out, int64_t n) {
  const float top = std::max(max, later_max);
  const float shifts[2] = {max - top, later_max - top};
  float factor[2];
  kernels.exp(shifts, 0.0f, 2, factor);
  sum = sum * factor[0] + later_sum * factor[1];
  max = top;
  kernels.blend(later_out, factor[1], factor[0], n, out);
}

}  // namespace duet::attention
