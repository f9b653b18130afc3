#include "model/options.h"

namespace duet {

const char* to_string(ExpertPath path) {
  return path == ExpertPath::kAllToAll ? "all-to-all" : "all-reduce";
}

const char* to_string(ComputeDtype dtype) {
  switch (dtype) {
    case ComputeDtype::kAuto: return "auto";
    case ComputeDtype::kFloat32: return "float32";
    case ComputeDtype::kBfloat16: return "bfloat16";
    case ComputeDtype::kHalf: return "half";
  }
  return "unknown";
}

ComputeDtype resolve(ComputeDtype dtype, DType checkpoint) {
  if (dtype != ComputeDtype::kAuto) return dtype;
  if (checkpoint == DType::kBf16) return ComputeDtype::kBfloat16;
  if (checkpoint == DType::kF16) return ComputeDtype::kHalf;
  return ComputeDtype::kFloat32;
}

Rounding rounding_of(ComputeDtype dtype) {
  if (dtype == ComputeDtype::kBfloat16) return Rounding::kBf16;
  if (dtype == ComputeDtype::kHalf) return Rounding::kF16;
  return Rounding::kNone;
}

DType weight_dtype(ComputeDtype dtype, DType stored) {
  if (dtype == ComputeDtype::kBfloat16) return DType::kBf16;
  if (dtype == ComputeDtype::kHalf) return DType::kF16;
  return stored;
}

DType kv_dtype(const MemoryPolicy& policy) {
  return policy.kv_cache == KvCacheDtype::kInt8 ? DType::kI8 : weight_dtype(policy.dtype, DType::kF32);
}

}  // namespace duet
