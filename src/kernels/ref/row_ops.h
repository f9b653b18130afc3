// Oracles of the row-wise operations (norm, RoPE, gate, add, argmax, log-softmax): their
// definitions in plain float64 loops. Called by tests only.
#pragma once

#include "kernels/ops.h"

namespace duet::ref {

void rms_norm(ConstRows x, std::span<const float> weight, float eps, Rows out);
void rope_interleaved(Rows x, int heads, int64_t head_stride, int64_t offset,
                      std::span<const int32_t> positions, const RopeTable& table);
void rope_halves(Rows x, int heads, int64_t head_stride, int64_t offset, std::span<const int32_t> positions,
                 const RopeTable& table);
void add_bias(std::span<const float> bias, Rows out);
/// Step by step what Hugging Face's DeepseekV2MoEGate and DeepseekV3TopkRouter do, ids sorted.
void gate_top_k(ConstRows logits, const GateParams& params, std::span<const float> bias, int32_t* ids,
                float* weights);
void add_rows(ConstRows x, Rows out);
int64_t argmax(std::span<const float> values);
void log_softmax(std::span<const float> values, std::span<float> out);

}  // namespace duet::ref
