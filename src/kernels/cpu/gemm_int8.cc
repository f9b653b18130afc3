#include <algorithm>
#include <cstring>

#include "kernels/cpu/gemm_block.h"

// int8 · int8. A tile takes all of K: its sums are exact integers, so there is nothing to gain from
// blocks, and c never holds half a sum.

namespace duet::gemm_detail {
namespace {

struct Job {
  const Int8Kernels* kernels;
  const std::byte* block;
  int64_t a_stride, scale_at, quads;
  const std::byte* w;
  int64_t panel_bytes;
  int64_t n;
  float* c;  // (0, 0) of the whole product
  int64_t ldc;
  bool load_c;
};

void run_tile(const Job& job, int64_t row, int height, int64_t panel, int panels) {
  const Int8TileFn tile = job.kernels->tile[height - 1][panels / 2];
  const std::byte* a = job.block + row * job.a_stride;
  const std::byte* w = job.w + panel * job.panel_bytes;
  const int64_t column = panel * kPanelColumns;
  float* c = job.c + row * job.ldc + column;
  const int64_t width = panels * kPanelColumns;
  const int64_t valid = std::min(width, job.n - column);
  if (valid == width) {
    tile(job.quads, a, job.a_stride, job.scale_at, w, job.panel_bytes, c, job.ldc, job.load_c);
    return;
  }
  float edge[kMaxTileRows * 4 * kPanelColumns] = {};
  const auto bytes = static_cast<size_t>(valid) * sizeof(float);
  if (job.load_c) {
    for (int r = 0; r < height; ++r) std::memcpy(edge + r * width, c + r * job.ldc, bytes);
  }
  tile(job.quads, a, job.a_stride, job.scale_at, w, job.panel_bytes, edge, width, job.load_c);
  for (int r = 0; r < height; ++r) std::memcpy(c + r * job.ldc, edge + r * width, bytes);
}

}  // namespace

void multiply_int8(const Product& product, const std::byte* block, int64_t a_stride, int64_t row0,
                   int64_t row1, const PackedView& w, int64_t panel0, int64_t panel1, float* c, int64_t ldc,
                   Accumulate accumulate) {
  if (row0 >= row1 || panel0 >= panel1) return;
  const Int8Kernels& kernels = *product.int8;
  const Job job{&kernels,
                block,
                a_stride,
                int8_scale_at(w.k),
                (w.k + 3) / 4,
                static_cast<const std::byte*>(w.data),
                w.panel_bytes(),
                w.n,
                c - row0 * ldc - panel0 * kPanelColumns,
                ldc,
                accumulate == Accumulate::kYes};
  const Strips strips(row1 - row0, kernels.max_rows);
  const auto widest = [&](int height, int64_t left) {
    const Int8TileFn* of_height = kernels.tile[height - 1];
    return of_height[2] && left >= 4 ? 4 : of_height[1] && left >= 2 ? 2 : 1;
  };
  for (int64_t p = panel0; p < panel1;) {
    const int panels = widest(strips.most(), panel1 - p);
    if (strips.count == 1) {
      prefetch_panels(job.w + (p + panels) * job.panel_bytes, job.panel_bytes,
                      std::min<int64_t>(panels, panel1 - p - panels));
    }
    if (kernels.tall && strips.count > 1 && panels == 2 && (p + 2) * kPanelColumns <= w.n) {
      const std::byte* at = job.w + p * job.panel_bytes;
      kernels.tall(row1 - row0, job.quads, block + row0 * a_stride, a_stride, job.scale_at, at,
                   job.panel_bytes, job.c + row0 * ldc + p * kPanelColumns, ldc, job.load_c,
                   p + 4 <= panel1 ? at + 2 * job.panel_bytes : nullptr);
      p += 2;
      continue;
    }
    int64_t row = row0;
    for (int64_t i = 0; i < strips.count; ++i) {
      run_tile(job, row, strips.height(i), p, panels);
      row += strips.height(i);
    }
    p += panels;
  }
  if (kernels.done) kernels.done();
}

}  // namespace duet::gemm_detail
