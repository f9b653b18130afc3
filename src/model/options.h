// Choices that shape how a rank loads and runs a model; equal on every rank.
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace duet {

/// How routed experts meet their tokens: every rank computes its part for all tokens and the parts
/// are all-reduced, or tokens are sent to their experts' ranks and the results sent back.
enum class ExpertPath : uint8_t { kAllReduce, kAllToAll };

/// --dtype; kAuto takes the config's. kFloat32: weights as stored, widened; float32 KV and
/// arithmetic. kBfloat16, kHalf: weights, KV and the inputs of matrix products rounded to that
/// type; sums and the residual stream stay float32.
enum class ComputeDtype : uint8_t { kAuto, kFloat32, kBfloat16, kHalf };

/// --quantization. kW8A8: every Linear becomes int8 by output channel at load time, with int8 inputs.
enum class Quantization : uint8_t { kAsStored, kW8A8 };

/// --kv-cache-dtype. kAuto: what the compute dtype says. kInt8: a latent cache of int8 (kernels/latent8.h).
enum class KvCacheDtype : uint8_t { kAuto, kInt8 };

/// How weights and the KV cache are held in memory. `int8_head`: with kW8A8, kv_b_proj and the head become
/// int8 too, while their inputs keep 16 bits.
struct MemoryPolicy {
  MemoryPolicy(ComputeDtype d, Quantization q = Quantization::kAsStored, bool head = true,
               KvCacheDtype cache = KvCacheDtype::kAuto)
      : dtype(d), quantization(q), int8_head(head), kv_cache(cache) {}
  ComputeDtype dtype;  // resolved
  Quantization quantization;
  bool int8_head;
  KvCacheDtype kv_cache;
};

/// "all-reduce", "all-to-all".
const char* to_string(ExpertPath path);
/// "auto", "float32", "bfloat16", "half".
const char* to_string(ComputeDtype dtype);
/// Resolves kAuto by the checkpoint's own dtype.
ComputeDtype resolve(ComputeDtype dtype, DType checkpoint);
Rounding rounding_of(ComputeDtype dtype);
/// Element type of packed weights stored as `stored`, and of the KV cache.
DType weight_dtype(ComputeDtype dtype, DType stored);
DType kv_dtype(const MemoryPolicy& policy);

}  // namespace duet
