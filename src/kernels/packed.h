// Weights as the GEMM reads them: 16-column panels, packed once at load (or, for attention, a tile
// at a time into scratch). Called by src/model at load and by the attention kernels.
// Layout: panel p holds output columns [16p, 16p+16); inside a panel k runs slowest, so one step of
// the k loop reads 16 neighbours. The last panel is padded with zeros. For bf16 the k index runs in
// pairs (two k of one column side by side), which is what a bf16 dot product instruction eats and
// what widening kernels can unpack; an odd K is padded with a zero.
#pragma once

#include <span>

#include "tensor/arena.h"
#include "tensor/view.h"

namespace duet {

constexpr int64_t kPanelColumns = 16;

/// A packed matrix somebody else owns: weights [n, k] of `dtype` (f32, bf16 or f16).
struct PackedView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t n = 0;  // output features
  int64_t k = 0;  // input features
};

/// Bytes of a packed [n, k] matrix.
size_t packed_bytes(int64_t n, int64_t k, DType dtype);

/// Packs `parts`, stacked along n, into `dst` (packed_bytes of the sum; 64-byte aligned),
/// converting f32/bf16/f16 elements to `dtype` (round to nearest even). All parts have one k.
void pack_into(std::span<const WeightView> parts, DType dtype, void* dst);

/// Owns its packed bytes.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  PackedMatrix(std::span<const WeightView> parts, DType dtype);
  PackedMatrix(const WeightView& part, DType dtype) : PackedMatrix(std::span(&part, 1), dtype) {}

  PackedView view() const { return {buffer_.data(), dtype_, n_, k_}; }
  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  size_t bytes() const { return buffer_.size(); }

 private:
  AlignedBuffer buffer_;
  DType dtype_ = DType::kF32;
  int64_t n_ = 0;
  int64_t k_ = 0;
};

}  // namespace duet
