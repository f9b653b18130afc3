// The 8-bit half of packing, for packed.cc alone.
#pragma once

#include "kernels/packed.h"

namespace duet::pack_detail {

/// One output column of the stacked matrix: row `row` of `view`.
struct Source {
  const WeightView* view = nullptr;
  int64_t row = 0;
};

/// Packs up to 16 columns as one panel of `shape` (its n is not read). `bytes`: 16 · k rounded up to 4,
/// working space.
void pack_panel8(const Source* columns, int count, const PackedView& shape, std::byte* panel,
                 std::byte* bytes);

/// Elements [first, first + count) of a column as float32, 8-bit ones times their scale.
void widen_scaled(const Source& column, int64_t first, int64_t count, float* out);

}  // namespace duet::pack_detail
