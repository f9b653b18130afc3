// Oracles of multi-head latent and grouped-query attention: the definitions in plain float64 loops, without
// tiles, running softmax, absorption or rounding. Called by tests only.
#pragma once

#include "kernels/ops.h"

namespace duet::ref {

/// As duet::mla_attention, from the unpacked kv_b; both forms are the same function here.
void mla_attention(const MlaShape& shape, const WeightView& kv_b, ConstRows q, const PagedCache& cache,
                   std::span<const AttentionSpan> spans, Rows out);

void write_latent(const KernelContext& cx, const MlaShape& shape, ConstRows latent, ConstRows k_rope,
                  std::span<const int64_t> slots, const PagedCache& cache);

void gqa_attention(const GqaShape& shape, ConstRows q, const PagedCache& cache,
                   std::span<const AttentionSpan> spans, Rows out);

void write_kv(const KernelContext& cx, const GqaShape& shape, ConstRows k, ConstRows v,
              std::span<const int64_t> slots, const PagedCache& cache);

}  // namespace duet::ref
