// Weights as the GEMM reads them: 16-column panels, packed once at load (or, for attention, a tile
// at a time into scratch). Called by src/model at load and by the attention kernels.
// Layout: panel p holds output columns [16p, 16p+16); inside a panel k runs slowest, so one step of
// the k loop reads 16 neighbours. The last panel is padded with zeros. For bf16 the k index runs in
// pairs (two k of one column side by side), which is what a bf16 dot product instruction eats and
// what widening kernels can unpack; an odd K is padded with a zero. 8-bit types run in quads of k and
// carry their scales with them, so that a panel is one stream from memory:
//  * i8: 16 scales (f32), 16 times 128 · Σ of the column (i32), quads;
//  * f8e4m3: for each block of k that shares scales: 16 scales (f32), quads. The first block may be
//    short, since a shard may cut one (on a quad: see fits_fp8).
// A quad is 64 bytes, 16 for four columns: of i8 the four k of the first column, of the second, …, as VNNI
// eats them; of f8e4m3 k 0 and 1 of the four columns, then k 2 and 3, which two unpackings turn into pairs.
#pragma once

#include <span>

#include "kernels/inputs.h"
#include "tensor/arena.h"
#include "tensor/view.h"

namespace duet {

constexpr int64_t kPanelColumns = 16;

/// What packed weights are to be.
struct PackAs {
  PackAs(DType d, Inputs i) : dtype(d), inputs(i) {}
  PackAs(DType d)
      : PackAs(d, d == DType::kI8 ? Inputs::kInt16 : Inputs::kFloat) {}  // NOLINT: a type is enough
  DType dtype;
  Inputs inputs;
};

/// A packed matrix somebody else owns: weights [n, k] of `dtype` (f32, bf16, f16, f8e4m3 or i8).
struct PackedView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t n = 0;  // output features
  int64_t k = 0;  // input features
  Inputs inputs = Inputs::kFloat;
  int32_t block = 0;    // f8e4m3: k that share a scale, a multiple of 4
  int32_t offset = 0;   // f8e4m3: of k = 0 inside its block, a multiple of 4
  int64_t panel_k = 0;  // k that the panels have room for, where that is more

  /// Bytes from one panel to the next.
  int64_t panel_bytes() const;
  /// Panels [first, …) as a matrix of n columns.
  PackedView from_panel(int64_t first, int64_t columns) const;
  /// The first `count` of k, f32, bf16 or f16. bf16 lies in pairs: the partner of an odd last one is
  /// multiplied by 0.
  PackedView first_k(int64_t count) const;
};

/// Bytes of a packed [n, k] matrix. `block`, `offset`: of f8e4m3.
size_t packed_bytes(int64_t n, int64_t k, DType dtype, int64_t block = 128, int64_t offset = 0);

/// Whether f8e4m3 weights can stay so: their scales' borders lie on quads of k. Otherwise they are packed
/// as floats.
bool fits_fp8(const WeightView& w);

/// How parts will lie: type, sizes and, of f8e4m3, where scales change; no data. Reads no elements.
PackedView packed_shape(std::span<const WeightView> parts, PackAs as);

/// Packs `parts`, stacked along n, into `dst` (packed_bytes of the sum; 64-byte aligned). All parts
/// have one k. Elements are converted to a float `as.dtype` (round to nearest even, 8-bit ones times
/// their scale). i8 takes i8 with a scale per row as it is, and floats as W8A8 does: s = max |w| / 127
/// of the row, w / s to nearest even. f8e4m3 takes f8e4m3 with scales per block. Throws kUnsupported
/// for other combinations, kCorrupt for an f8e4m3 NaN.
void pack_into(std::span<const WeightView> parts, PackAs as, void* dst);

/// Owns its packed bytes.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  PackedMatrix(std::span<const WeightView> parts, PackAs as);
  PackedMatrix(const WeightView& part, PackAs as) : PackedMatrix(std::span(&part, 1), as) {}
  /// Room for [n, k] that pack_rows fills; `like` says how f8e4m3 scales lie.
  PackedMatrix(int64_t n, int64_t k, PackAs as, const WeightView& like);
  /// Rows [first_row, first_row + part.rows); first_row is a multiple of 16, and so are the rows of
  /// every part but the last.
  void pack_rows(int64_t first_row, const WeightView& part);

  PackedView view() const {
    PackedView v = shape_;
    v.data = buffer_.data();
    return v;
  }
  int64_t n() const { return shape_.n; }
  int64_t k() const { return shape_.k; }
  size_t bytes() const { return buffer_.size(); }

 private:
  AlignedBuffer buffer_;
  PackedView shape_;
};

}  // namespace duet
