// Multi-head latent attention: packing, the cache write, and the call that serves both forms.
#include <vector>

#include "kernels/cpu/mla_latent8.h"

namespace duet {

MlaWeights pack_mla(const MlaShape& shape, const WeightView& kv_b, DType dtype) {
  const int64_t per_head = shape.nope + shape.v;
  DUET_CHECK(kv_b.rows == shape.heads * per_head && kv_b.cols == shape.lora);
  MlaWeights w;
  // Every head starts on a panel of its own, so that one head is a slice of the packed matrix.
  const int64_t padding = mla::expanded_columns(shape) - per_head;
  const std::vector<float> zeros(static_cast<size_t>(padding * shape.lora));
  std::vector<WeightView> parts;
  for (int h = 0; h < shape.heads; ++h) {
    parts.push_back(row_range(kv_b, h * per_head, per_head));
    if (padding > 0) parts.push_back({zeros.data(), DType::kF32, padding, shape.lora, shape.lora, 1});
  }
  w.kv_b = PackedMatrix(parts, dtype);
  for (int h = 0; h < shape.heads; ++h) {
    w.w_uk.emplace_back(transposed(row_range(kv_b, h * per_head, shape.nope)), dtype);
    w.w_uv.emplace_back(row_range(kv_b, h * per_head + shape.nope, shape.v), dtype);
  }
  return w;
}

int64_t latent_row_bytes(const MlaShape& shape, DType dtype) {
  if (dtype == DType::kI8) return mla::row_of(shape).bytes();
  return (shape.lora + shape.rope) * static_cast<int64_t>(dtype_bytes(dtype));
}

void write_latent(const KernelContext& cx, const MlaShape& shape, ConstRows latent, ConstRows k_rope,
                  std::span<const int64_t> slots, const PagedCache& cache) {
  DUET_CHECK(latent.cols == shape.lora && k_rope.cols == shape.rope && latent.rows == k_rope.rows &&
             static_cast<int64_t>(slots.size()) == latent.rows);
  const RowKernels& kernels = row_kernels(cx.level);
  const auto element = static_cast<int64_t>(dtype_bytes(cache.dtype));
  const int64_t row_bytes = latent_row_bytes(shape, cache.dtype);
  for (int64_t r = 0; r < latent.rows; ++r) {
    const int64_t slot = slots[static_cast<size_t>(r)];
    DUET_CHECK(slot >= 0);
    std::byte* to = static_cast<std::byte*>(cache.data) + slot * row_bytes;
    if (cache.dtype == DType::kI8) {
      mla::store_row8(kernels, mla::row_of(shape), latent.row(r), k_rope.row(r), to);
      continue;
    }
    attention::store_rounded(kernels, cx.rounding, latent.row(r), shape.lora, cache.dtype, to);
    attention::store_rounded(kernels, cx.rounding, k_rope.row(r), shape.rope, cache.dtype,
                             to + shape.lora * element);
  }
}

void mla::load_latent(const Job& job, const int32_t* block_table, int64_t first, int64_t keys, float* out) {
  const attention::CacheRows cache = job.cache_rows();
  if (cache.dtype != DType::kI8) {
    attention::load_rows(job.rows, cache, block_table, first, keys, out);
    return;
  }
  for (int64_t key = 0; key < keys; ++key, out += job.width())
    load_row8(job.rows, row_of(job.shape), attention::row_at(cache, block_table, first + key), out);
}

void mla_attention(const KernelContext& cx, const MlaShape& shape, const MlaWeights& w, ConstRows q,
                   const PagedCache& cache, std::span<const AttentionSpan> spans, Rows out,
                   ExpandedTiles* tiles) {
  if (shape.heads == 0 || spans.empty()) return;
  DUET_CHECK(q.cols == int64_t{shape.heads} * (shape.nope + shape.rope) &&
             out.cols == int64_t{shape.heads} * shape.v && cache.block_size > 0 && cx.scratch);
  bool expanded = false, absorbed = false;
  for (const AttentionSpan& span : spans) {
    DUET_CHECK(span.first_row >= 0 && span.first_row + span.rows <= q.rows && q.rows <= out.rows);
    (span.form == AttentionForm::kExpanded ? expanded : absorbed) |= span.rows > 0;
  }
  const mla::Job job{cx, shape, w, q, cache, spans, out, row_kernels(cx.level)};
  if (expanded) {
    ArenaScope scope(*cx.scratch);
    mla::run_expanded(job, tiles, cx.scratch->take<std::byte>(mla::expanded_bytes(shape, cx.threads())));
  }
  if (absorbed) {
    ArenaScope scope(*cx.scratch);
    mla::run_absorbed(job, cx.scratch->take<std::byte>(mla::absorbed_bytes(shape, cx.threads())));
  }
}

size_t mla_scratch_bytes(const MlaShape& shape, int threads) {
  return std::max(mla::expanded_bytes(shape, threads), mla::absorbed_bytes(shape, threads));
}

}  // namespace duet
