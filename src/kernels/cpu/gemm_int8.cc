#include <algorithm>
#include <cstring>

#include "kernels/cpu/gemm_block.h"

// int8 · int8. A tile takes all of K: its sums are exact integers, so there is nothing to gain from
// blocks, and c never holds half a sum. Inputs of 16 bits are two rows of int8 next to each other, whose
// results a piece of scratch holds until they are added (at avx2 one row of int16, a row like any other).

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

/// What comes to the caches while strip `strip` of some multiplies the panels at w: to the first strip, which
/// reads them from memory, what is a KiB ahead; with the second the panels that are next (`more`).
const std::byte* ahead_of(const Job& job, const std::byte* w, int panels, int64_t strip, bool more) {
  constexpr int64_t kAhead = 1024;
  if (strip == 0) return w + 128 + kAhead;
  return strip == 1 && more ? w + panels * job.panel_bytes : w + 128;
}

void run_tile(const Job& job, int64_t row, int height, int64_t panel, int panels, const std::byte* ahead) {
  const Int8TileFn tile = job.kernels->tile[height - 1][panels / 2];
  const std::byte* a = job.block + row * job.a_stride;
  const std::byte* w = job.w + panel * job.panel_bytes;
  const int64_t column = panel * kPanelColumns;
  float* c = job.c + row * job.ldc + column;
  const int64_t width = panels * kPanelColumns;
  const int64_t valid = std::min(width, job.n - column);
  if (valid == width) {
    tile(job.quads, a, job.a_stride, job.scale_at, w, job.panel_bytes, c, job.ldc, job.load_c, ahead);
    return;
  }
  float edge[kMaxTileRows * 4 * kPanelColumns] = {};
  const auto bytes = static_cast<size_t>(valid) * sizeof(float);
  if (job.load_c) {
    for (int r = 0; r < height; ++r) std::memcpy(edge + r * width, c + r * job.ldc, bytes);
  }
  tile(job.quads, a, job.a_stride, job.scale_at, w, job.panel_bytes, edge, width, job.load_c, ahead);
  for (int r = 0; r < height; ++r) std::memcpy(c + r * job.ldc, edge + r * width, bytes);
}

/// The widest tile of this height that `left` panels fill.
int widest(const Int8Kernels& kernels, int height, int64_t left) {
  const Int8TileFn* of_height = kernels.tile[height - 1];
  return of_height[2] && left >= 4 ? 4 : of_height[1] && left >= 2 ? 2 : 1;
}

/// Panels [panel0, panel1) in groups, each with all strips of rows from row0 on, which become `parts` rows of
/// int8 each: strip(row, height, panel, panels, what to bring ahead). Before that tall(panel, next) may take
/// some panels with all rows at once.
template <typename Tall, typename Strip>
void for_panels(const Job& job, const Strips& strips, int parts, int64_t row0, int64_t panel0, int64_t panel1,
                const Tall& tall, const Strip& strip) {
  const Int8Kernels& kernels = *job.kernels;
  for (int64_t p = panel0; p < panel1;) {
    const int panels = widest(kernels, parts * strips.most(), panel1 - p);
    const std::byte* w = job.w + p * job.panel_bytes;
    const std::byte* after = w + panels * job.panel_bytes;
    if (strips.count == 1)
      prefetch_panels(after, job.panel_bytes, std::min<int64_t>(panels, panel1 - p - panels));
    const bool at_once = kernels.tall && strips.count > 1 && panels == kernels.tall_panels &&
                         parts * strips.rows() >= kernels.tall_rows;
    if (!at_once || !tall(p, p + 2 * panels <= panel1 ? after : nullptr)) {
      int64_t row = row0;
      for (int64_t i = 0; i < strips.count; ++i) {
        strip(row, strips.height(i), p, panels, ahead_of(job, w, panels, i, p + panels < panel1));
        row += strips.height(i);
      }
    }
    p += panels;
  }
}

/// c (+)= high + low for `rows` pairs of rows of `sums`.
void add_parts(const Job& job, const float* sums, int64_t width, int64_t row, int64_t rows, int64_t panel) {
  const int64_t column = panel * kPanelColumns, valid = std::min(width, job.n - column);
  for (int64_t r = 0; r < rows; ++r, sums += 2 * width) {
    float* c = job.c + (row + r) * job.ldc + column;
    if (job.load_c) {
      for (int64_t i = 0; i < valid; ++i) c[i] += sums[i] + sums[width + i];
    } else {
      for (int64_t i = 0; i < valid; ++i) c[i] = sums[i] + sums[width + i];
    }
  }
}

/// Rows [row0, row1) of 16-bit inputs times panels [panel0, panel1).
void multiply_int16(const Job& job, int64_t row0, int64_t row1, int64_t panel0, int64_t panel1) {
  const Int8Kernels& kernels = *job.kernels;
  alignas(64) float sums[2 * kBlockRows * 2 * kPanelColumns];
  const auto rows_at = [&](int64_t row) { return job.block + 2 * row * job.a_stride; };
  const auto panel_at = [&](int64_t panel) { return job.w + panel * job.panel_bytes; };
  for_panels(
      job, Strips(row1 - row0, kernels.max_rows / 2), 2, row0, panel0, panel1,
      [&](int64_t p, const std::byte* next) {
        constexpr int64_t kWidth = 2 * kPanelColumns;
        kernels.tall(2 * (row1 - row0), job.quads, rows_at(row0), job.a_stride, job.scale_at, panel_at(p),
                     job.panel_bytes, sums, kWidth, false, next);
        add_parts(job, sums, kWidth, row0, row1 - row0, p);
        return true;
      },
      [&](int64_t row, int height, int64_t p, int panels, const std::byte* ahead) {
        const int64_t width = panels * kPanelColumns;
        kernels.tile[2 * height - 1][panels / 2](job.quads, rows_at(row), job.a_stride, job.scale_at,
                                                 panel_at(p), job.panel_bytes, sums, width, false, ahead);
        add_parts(job, sums, width, row, height, p);
      });
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
                int8_scale_at(product),
                (w.k + 3) / 4,
                static_cast<const std::byte*>(w.data),
                w.panel_bytes(),
                w.n,
                c - row0 * ldc - panel0 * kPanelColumns,
                ldc,
                accumulate == Accumulate::kYes};
  if (product.int16) {
    multiply_int16(job, row0, row1, panel0, panel1);
  } else {
    for_panels(
        job, Strips(row1 - row0, kernels.max_rows), 1, row0, panel0, panel1,
        [&](int64_t p, const std::byte* next) {
          if ((p + kernels.tall_panels) * kPanelColumns > w.n) return false;
          kernels.tall(row1 - row0, job.quads, block + row0 * a_stride, a_stride, job.scale_at,
                       job.w + p * job.panel_bytes, job.panel_bytes, job.c + row0 * ldc + p * kPanelColumns,
                       ldc, job.load_c, next);
          return true;
        },
        [&](int64_t row, int height, int64_t p, int panels, const std::byte* ahead) {
          run_tile(job, row, height, p, panels, ahead);
        });
  }
  if (kernels.done) kernels.done();
}

}  // namespace duet::gemm_detail
