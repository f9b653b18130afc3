// What is DeepSeek's own in the forward pass (V2: arXiv 2405.04434, V3: arXiv 2412.19437): multi-head latent
// attention. The whole, read from top to bottom, is Decoder::record.
#include "model/deepseek/model.h"

namespace duet {

Decoder::AttentionParts DeepseekModel::attention(size_t layer) {
  const MlaLayerWeights& w = attention_[layer];
  const PagedCache kv = cache(layer);
  AttentionParts parts;
  parts.norm = w.norm;
  parts.inputs = [this, &w, kv](const AttentionInput& in) { attention_inputs(in, w, kv); };
  parts.core = [this, &w, kv](ConstRows q, std::span<const AttentionSpan> spans, Rows heads) {
    mla_attention(cx(), shapes_.mla, w.mla, q, kv, spans, heads, &tiles_);
  };
  parts.out = &w.o;
  return parts;
}

// h [rows, hidden] → q [rows, heads · (nope + rope)] rotated; latent and rotated k_rope → the cache.
void DeepseekModel::attention_inputs(const AttentionInput& in, const MlaLayerWeights& w,
                                     const PagedCache& cache) {
  const MlaShape& mla = shapes_.mla;
  const int64_t n = in.h.rows;
  if (shapes_.q_lora > 0) {
    const Rows low = scratch_rows(n, shapes_.q_lora);
    gemm(cx(), in.h, w.q_a.view(), low);
    rms_norm(cx(), low, w.q_norm, eps(), low);
    gemm(cx(), low, w.q_b.view(), in.q);
  } else {
    gemm(cx(), in.h, w.q_b.view(), in.q);
  }
  rope_interleaved(cx(), in.q, mla.heads, mla.nope + mla.rope, mla.nope, in.positions, rope());

  const Rows kv = scratch_rows(n, shapes_.attention.kv);
  gemm(cx(), in.h, w.kv_a.view(), kv);
  const Rows latent = kv.col_slice(0, mla.lora), k_rope = kv.col_slice(mla.lora, mla.rope);
  rms_norm(cx(), latent, w.kv_norm, eps(), latent);
  rope_interleaved(cx(), k_rope, 1, mla.rope, 0, in.positions, rope());
  write_latent(cx(), mla, latent, k_rope, in.slots, cache);
}

}  // namespace duet
