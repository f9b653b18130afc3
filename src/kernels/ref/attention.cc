#include "kernels/ref/attention.h"

#include <cmath>

namespace duet::ref {

namespace {

double weight_at(const WeightView& w, int64_t n, int64_t k) {
  float value = 0.0f;
  const auto* base = static_cast<const std::byte*>(w.data);
  convert_to_f32(base + (n * w.row_stride + k * w.col_stride) * static_cast<int64_t>(dtype_bytes(w.dtype)),
                 w.dtype, &value, 1);
  return static_cast<double>(value);
}

double cache_at(const LatentCache& cache, const AttentionSpan& span, int64_t width, int64_t position,
                int64_t column) {
  const int64_t slot =
      int64_t{span.block_table[position / cache.block_size]} * cache.block_size + position % cache.block_size;
  float value = 0.0f;
  const auto* base = static_cast<const std::byte*>(cache.data);
  convert_to_f32(base + (slot * width + column) * static_cast<int64_t>(dtype_bytes(cache.dtype)), cache.dtype,
                 &value, 1);
  return static_cast<double>(value);
}

}  // namespace

void mla_attention(const MlaShape& shape, const WeightView& kv_b, ConstRows q, const LatentCache& cache,
                   std::span<const AttentionSpan> spans, Rows out) {
  const int64_t width = shape.lora + shape.rope, per_head = shape.nope + shape.v,
                q_head = shape.nope + shape.rope;
  for (const AttentionSpan& span : spans) {
    const int64_t context = span.start_position + span.rows;
    for (int64_t h = 0; h < shape.heads; ++h) {
      // Keys [context, nope + rope] and values [context, v] of this head.
      std::vector<double> keys, values;
      for (int64_t p = 0; p < context; ++p) {
        for (int64_t d = 0; d < per_head; ++d) {
          double sum = 0.0;
          for (int64_t c = 0; c < shape.lora; ++c) {
            sum += cache_at(cache, span, width, p, c) * weight_at(kv_b, h * per_head + d, c);
          }
          (d < shape.nope ? keys : values).push_back(sum);
        }
        for (int64_t d = 0; d < shape.rope; ++d)
          keys.push_back(cache_at(cache, span, width, p, shape.lora + d));
      }
      for (int64_t i = 0; i < span.rows; ++i) {
        const float* query = q.row(span.first_row + i) + h * q_head;
        const int64_t seen = span.start_position + i + 1;
        std::vector<double> score(static_cast<size_t>(seen));
        double peak = -INFINITY;
        for (int64_t p = 0; p < seen; ++p) {
          double dot = 0.0;
          for (int64_t d = 0; d < q_head; ++d) {
            dot += static_cast<double>(query[d]) * keys[static_cast<size_t>(p * q_head + d)];
          }
          score[static_cast<size_t>(p)] = dot * static_cast<double>(shape.scale);
          peak = std::max(peak, score[static_cast<size_t>(p)]);
        }
        double total = 0.0;
        for (double& s : score) total += s = std::exp(s - peak);
        for (int64_t d = 0; d < shape.v; ++d) {
          double sum = 0.0;
          for (int64_t p = 0; p < seen; ++p) {
            sum += score[static_cast<size_t>(p)] * values[static_cast<size_t>(p * shape.v + d)];
          }
          out.row(span.first_row + i)[h * shape.v + d] = static_cast<float>(sum / total);
        }
      }
    }
  }
}

void write_latent(const KernelContext& cx, const MlaShape& shape, ConstRows latent, ConstRows k_rope,
                  std::span<const int64_t> slots, const LatentCache& cache) {
  const int64_t width = shape.lora + shape.rope;
  for (int64_t r = 0; r < latent.rows; ++r) {
    for (int64_t c = 0; c < width; ++c) {
      const float plain = c < shape.lora ? latent.row(r)[c] : k_rope.row(r)[c - shape.lora];
      const float rounded = round_to(plain, cx.rounding);
      const int64_t at = slots[static_cast<size_t>(r)] * width + c;
      convert_from_f32(
          &rounded, cache.dtype,
          static_cast<std::byte*>(cache.data) + at * static_cast<int64_t>(dtype_bytes(cache.dtype)), 1);
    }
  }
}

}  // namespace duet::ref
