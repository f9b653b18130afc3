// `duet quantize`: a checkpoint written anew as W8A8 (compressed-tensors "int-quantized", which vLLM reads
// too) or as bfloat16. Called by the verb alone.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace duet {

enum class QuantScheme : uint8_t {
  kW8A8,  // every projection but kv_b_proj: int8, f32 scale per output channel = max |w| / 127
  kBf16,  // every matrix bfloat16, quantised ones multiplied out
};

struct QuantizeResult {
  int64_t tensors = 0, quantised = 0;
  uint64_t bytes_before = 0, bytes_after = 0;
  int files = 0;
};

/// Reads directory `model` (any format that Duet loads), writes directory `out`: weights, config.json with
/// its quantization_config, and the other files (tokenizer …). `out` must not exist or be empty, and
/// appears when it is complete.
/// Multi-token-prediction layers are left out. progress(fraction) as bytes are written. Throws Error.
QuantizeResult quantize_checkpoint(const std::string& model, const std::string& out, QuantScheme scheme,
                                   const std::function<void(double)>& progress,
                                   uint64_t max_file_bytes = uint64_t{4} << 30);

}  // namespace duet
