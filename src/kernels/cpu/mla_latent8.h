// MLA over the int8 latent cache (kernels/latent8.h): its rows, and the absorbed form, whose products are
// exact sums of integers. Included by mla*.cc only.
#pragma once

#include "kernels/cpu/mla_tile.h"
#include "kernels/latent8.h"

namespace duet::mla {

inline Latent8Row row_of(const MlaShape& shape) {
  return {shape.lora, shape.rope};
}

void store_row8(const RowKernels& kernels, const Latent8Row& row, const float* latent, const float* k_rope,
                std::byte* to);
void load_row8(const RowKernels& kernels, const Latent8Row& row, const std::byte* from, float* out);

/// attend_segment() of mla_absorbed.cc. `query` [heads, lora + rope] is not rounded. `scratch`:
/// segment8_bytes(), 64-byte aligned.
void attend_segment8(const Job& job, const int32_t* block_table, const float* query, int64_t begin,
                     int64_t end, const Partial& into, std::byte* scratch);
size_t segment8_bytes(const MlaShape& shape);

}  // namespace duet::mla
