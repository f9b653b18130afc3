#include "kernels/ref/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace duet::ref {

namespace {

double weight_at(const WeightView& w, int64_t n, int64_t k) {
  float value = 0.0f;
  const auto* base = static_cast<const std::byte*>(w.data);
  convert_to_f32(base + (n * w.row_stride + k * w.col_stride) * static_cast<int64_t>(dtype_bytes(w.dtype)),
                 w.dtype, &value, 1);
  return static_cast<double>(value);
}

double cache_element(const PagedCache& cache, int64_t index) {
  float value = 0.0f;
  const auto* base = static_cast<const std::byte*>(cache.data);
  convert_to_f32(base + index * static_cast<int64_t>(dtype_bytes(cache.dtype)), cache.dtype, &value, 1);
  return static_cast<double>(value);
}

template <typename T>
T read_as(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

/// Of an int8 row (kernels/latent8.h): scales, then the rotated part, then the latent.
double latent8_at(const std::byte* row, const MlaShape& shape, int64_t column) {
  const int64_t groups = (shape.lora + 127) / 128;
  const std::byte* rope = row + 4 * (groups + 1);
  if (column >= shape.lora) {
    const auto value = read_as<int16_t>(rope + 2 * (column - shape.lora));
    return static_cast<double>(value) * static_cast<double>(read_as<float>(row + 4 * groups));
  }
  const auto value = read_as<int8_t>(rope + int64_t{2} * shape.rope + column);
  return static_cast<double>(value) * static_cast<double>(read_as<float>(row + 4 * (column / 128)));
}

double cache_at(const PagedCache& cache, const AttentionSpan& span, const MlaShape& shape, int64_t position,
                int64_t column) {
  const int64_t slot =
      int64_t{span.block_table[position / cache.block_size]} * cache.block_size + position % cache.block_size;
  if (cache.dtype == DType::kI8) {
    const auto* rows = static_cast<const std::byte*>(cache.data);
    return latent8_at(rows + slot * latent_row_bytes(shape, DType::kI8), shape, column);
  }
  return cache_element(cache, slot * (shape.lora + shape.rope) + column);
}

/// `n` values as integers of at most `most`, T each; returns their scale.
template <typename T>
float put_integers(const float* x, int64_t n, int most, std::byte* to) {
  float largest = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    if (std::isnan(x[i])) largest = x[i];
    if (!std::isnan(largest)) largest = std::max(largest, std::abs(x[i]));
  }
  const bool zero = largest < 1e-30f;
  const float scale = zero ? 0.0f : largest / static_cast<float>(most);
  for (int64_t i = 0; i < n; ++i) {
    const float q = zero ? 0.0f : std::nearbyint(x[i] * (1.0f / scale));
    const T value = std::isfinite(q) ? static_cast<T>(q) : T{0};
    std::memcpy(to + i * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
  }
  return scale;
}

void store_latent8(const MlaShape& shape, const float* latent, const float* k_rope, std::byte* row) {
  const int64_t groups = (shape.lora + 127) / 128;
  std::byte* rope = row + 4 * (groups + 1);
  for (int64_t g = 0; g <= groups; ++g) {
    const int64_t first = g * 128;
    const float scale = g == groups
                            ? put_integers<int16_t>(k_rope, shape.rope, 4095, rope)
                            : put_integers<int8_t>(latent + first, std::min<int64_t>(128, shape.lora - first),
                                                   127, rope + int64_t{2} * shape.rope + first);
    std::memcpy(row + 4 * g, &scale, sizeof(scale));
  }
}

/// Index of a kv head's key at a slot; its value follows.
int64_t kv_index(const GqaShape& shape, const PagedCache& cache, int64_t block, int64_t inside,
                 int64_t head) {
  return ((block * shape.kv_heads + head) * cache.block_size + inside) * 2 * shape.head_dim;
}

void store(const PagedCache& cache, int64_t index, float plain, Rounding rounding) {
  const float rounded = round_to(plain, rounding);
  convert_from_f32(
      &rounded, cache.dtype,
      static_cast<std::byte*>(cache.data) + index * static_cast<int64_t>(dtype_bytes(cache.dtype)), 1);
}

/// Softmax(scale · query · keysᵀ) · values over the first `seen` of both, [·, k] and [·, v].
void attend(const float* query, const std::vector<double>& keys, const std::vector<double>& values,
            int64_t seen, int64_t k, int64_t v, float scale, float* out) {
  std::vector<double> score(static_cast<size_t>(seen));
  double peak = -INFINITY;
  for (int64_t p = 0; p < seen; ++p) {
    double dot = 0.0;
    for (int64_t d = 0; d < k; ++d)
      dot += static_cast<double>(query[d]) * keys[static_cast<size_t>(p * k + d)];
    score[static_cast<size_t>(p)] = dot * static_cast<double>(scale);
    peak = std::max(peak, score[static_cast<size_t>(p)]);
  }
  double total = 0.0;
  for (double& s : score) total += s = std::exp(s - peak);
  for (int64_t d = 0; d < v; ++d) {
    double sum = 0.0;
    for (int64_t p = 0; p < seen; ++p)
      sum += score[static_cast<size_t>(p)] * values[static_cast<size_t>(p * v + d)];
    out[d] = static_cast<float>(sum / total);
  }
}

}  // namespace

void mla_attention(const MlaShape& shape, const WeightView& kv_b, ConstRows q, const PagedCache& cache,
                   std::span<const AttentionSpan> spans, Rows out) {
  const int64_t per_head = shape.nope + shape.v, q_head = shape.nope + shape.rope;
  for (const AttentionSpan& span : spans) {
    const int64_t context = span.start_position + span.rows;
    for (int64_t h = 0; h < shape.heads; ++h) {
      // Keys [context, nope + rope] and values [context, v] of this head.
      std::vector<double> keys, values;
      for (int64_t p = 0; p < context; ++p) {
        for (int64_t d = 0; d < per_head; ++d) {
          double sum = 0.0;
          for (int64_t c = 0; c < shape.lora; ++c) {
            sum += cache_at(cache, span, shape, p, c) * weight_at(kv_b, h * per_head + d, c);
          }
          (d < shape.nope ? keys : values).push_back(sum);
        }
        for (int64_t d = 0; d < shape.rope; ++d)
          keys.push_back(cache_at(cache, span, shape, p, shape.lora + d));
      }
      for (int64_t i = 0; i < span.rows; ++i) {
        attend(q.row(span.first_row + i) + h * q_head, keys, values, span.start_position + i + 1, q_head,
               shape.v, shape.scale, out.row(span.first_row + i) + h * shape.v);
      }
    }
  }
}

void write_latent(const KernelContext& cx, const MlaShape& shape, ConstRows latent, ConstRows k_rope,
                  std::span<const int64_t> slots, const PagedCache& cache) {
  const int64_t width = shape.lora + shape.rope;
  for (int64_t r = 0; r < latent.rows; ++r) {
    if (cache.dtype == DType::kI8) {
      store_latent8(shape, latent.row(r), k_rope.row(r),
                    static_cast<std::byte*>(cache.data) +
                        slots[static_cast<size_t>(r)] * latent_row_bytes(shape, DType::kI8));
      continue;
    }
    for (int64_t c = 0; c < width; ++c) {
      const float plain = c < shape.lora ? latent.row(r)[c] : k_rope.row(r)[c - shape.lora];
      store(cache, slots[static_cast<size_t>(r)] * width + c, plain, cx.rounding);
    }
  }
}

void gqa_attention(const GqaShape& shape, ConstRows q, const PagedCache& cache,
                   std::span<const AttentionSpan> spans, Rows out) {
  const int64_t hd = shape.head_dim, bs = cache.block_size;
  for (const AttentionSpan& span : spans) {
    for (int64_t h = 0; h < shape.heads; ++h) {
      std::vector<double> keys, values;
      for (int64_t p = 0; p < span.start_position + span.rows; ++p) {
        const int64_t at = kv_index(shape, cache, span.block_table[p / bs], p % bs, h / shape.group());
        for (int64_t d = 0; d < hd; ++d) {
          keys.push_back(cache_element(cache, at + d));
          values.push_back(cache_element(cache, at + hd + d));
        }
      }
      for (int64_t i = 0; i < span.rows; ++i) {
        attend(q.row(span.first_row + i) + h * hd, keys, values, span.start_position + i + 1, hd, hd,
               shape.scale, out.row(span.first_row + i) + h * hd);
      }
    }
  }
}

void write_kv(const KernelContext& cx, const GqaShape& shape, ConstRows k, ConstRows v,
              std::span<const int64_t> slots, const PagedCache& cache) {
  const int64_t hd = shape.head_dim, bs = cache.block_size;
  for (int64_t r = 0; r < k.rows; ++r) {
    const int64_t slot = slots[static_cast<size_t>(r)];
    for (int64_t c = 0; c < k.cols; ++c) {
      const int64_t at = kv_index(shape, cache, slot / bs, slot % bs, c / hd) + c % hd;
      store(cache, at, k.row(r)[c], cx.rounding);
      store(cache, at + hd, v.row(r)[c], cx.rounding);
    }
  }
}

}  // namespace duet::ref
