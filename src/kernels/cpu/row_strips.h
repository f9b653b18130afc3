// How products c [rows, 16] of any number of rows are cut into tiles that keep their sums in registers.
// Included by row_*_body.h, on their terms.
#pragma once

#include <utility>

#include "kernels/cpu/lanes.h"

namespace duet {
namespace {

/// Rows of a tile: as many sums as registers hold beside a row of w.
#if defined(__AVX512F__)
constexpr int kMostRows = 16;
#elif defined(__AVX2__)
constexpr int kMostRows = 6;
#else
constexpr int kMostRows = 2;
#endif

/// Tile::run<R>(product, first row, first of the lines to bring, lines of a turn), which takes `turns` turns.
template <typename Tile, typename Product, int... R>
DUET_LANE void run_strips(const Product& t, int64_t turns, std::integer_sequence<int, R...>) {
  static constexpr void (*kTiles[])(const Product&, int64_t, int64_t,
                                    int64_t) = {Tile::template run<R + 1>...};
  const int64_t parts = (t.rows + kMostRows - 1) / kMostRows * turns;
  const int64_t lines = parts > 0 ? (t.ahead.lines + parts - 1) / parts : 0;
  int64_t line = 0;
  for (int64_t row = 0; row < t.rows; line += turns * lines) {
    // What is left in strips of nearly one height: 16 rows are 6 + 5 + 5, not 6 + 6 + 4.
    const int64_t left = t.rows - row, strips = (left + kMostRows - 1) / kMostRows;
    const int64_t height = (left + strips - 1) / strips;
    kTiles[height - 1](t, row, line, lines);
    row += height;
  }
}

template <typename Tile, typename Product>
DUET_LANE void run_strips(const Product& t, int64_t turns) {
  run_strips<Tile>(t, turns, std::make_integer_sequence<int, kMostRows>());
}

}  // namespace
}  // namespace duet
