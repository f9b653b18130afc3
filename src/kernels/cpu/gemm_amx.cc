#include <immintrin.h>

#include <utility>

#include "kernels/cpu/gemm_kernels.h"

// AMX: a tile register holds 16 rows of 64 bytes. A panel's step is 64 bytes (16 pairs of bf16, 16 quads of
// int8), so 16 steps of a panel are one tile as they lie, and 16 words of up to 16 rows of activations the
// other factor. 32 rows × 2 panels: four tiles of sums, two of either factor; every tile loaded is used
// twice. Up to 16 rows: 4 panels, four streams from memory. tdpbf16ps rounds to nearest and takes subnormals
// for zero; a chain is a whole call (512 steps), since emptying tiles of sums takes as long as eight steps.
// int8 takes the block and the panels of VNNI, unsigned by signed.

namespace duet::gemm_detail {
namespace {

enum class Kind { kBf16, kInt8 };
constexpr int64_t kAhead = 1024;  // bytes of prefetch
constexpr int kTileRows = 16;
constexpr int kRows = 2 * kTileRows;
constexpr int kTileSteps = 16;
constexpr int64_t kTileBytes = 1024;

/// The operand of ldtilecfg, palette 1: bytes and rows of each register.
struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(Config) == 64);

/// Registers of a product of so many rows: sums 0 to 3, activations 4 (and 5: rows from the 17th), weights
/// the rest. Sums of rows from the 17th are 2 and 3.
constexpr Config make_config(int rows) {
  Config c;
  const bool tall = rows > kTileRows;
  for (int t = 0; t < 8; ++t) {
    const bool below = tall && (t == 2 || t == 3 || t == 5);
    const bool weights = t >= 6 || (t == 5 && !tall);
    const int height = weights ? 16 : below ? rows - kTileRows : tall ? kTileRows : rows;
    c.rows[t] = static_cast<uint8_t>(height);
    c.row_bytes[t] = 64;
  }
  return c;
}
template <int... R>
struct Configs {
  static constexpr Config of_rows[] = {make_config(R + 1)...};
};
template <int... R>
constexpr const Config* configs(std::integer_sequence<int, R...>) {
  return Configs<R...>::of_rows;
}
constexpr const Config* kConfigs = configs(std::make_integer_sequence<int, kRows>());

/// What the thread's registers are set up for: doing it again takes as long as ten products. 0: released.
thread_local int t_rows = 0;

/// A thread that computes no products has no tiles that the system must save.
void release() {
  if (t_rows != 0) _tile_release();
  t_rows = 0;
}

// Register numbers are part of the instruction. The intrinsics do not say what memory they touch.
#define DUET_MEMORY_CHANGES() asm volatile("" : : : "memory")
#define DUET_MULTIPLY(sums, activations, weights) \
  {                                               \
    if constexpr (K == Kind::kInt8) {             \
      _tile_dpbusd(sums, activations, weights);   \
    } else {                                      \
      _tile_dpbf16ps(sums, activations, weights); \
    }                                             \
  }

/// sums += 16 steps of P panels.
template <Kind K, int P, bool kTall>
[[gnu::always_inline]] inline void multiply_tile(const std::byte* a, int64_t a_stride, const std::byte* w,
                                                 int64_t panel_stride) {
  _tile_loadd(4, a, a_stride);
  if constexpr (kTall) _tile_loadd(5, a + kTileRows * a_stride, a_stride);
  _tile_loadd(6, w, 64);
  DUET_MULTIPLY(0, 4, 6)
  if constexpr (kTall) DUET_MULTIPLY(2, 5, 6)
  if constexpr (P >= 2) {
    _tile_loadd(7, w + panel_stride, 64);
    DUET_MULTIPLY(1, 4, 7)
    if constexpr (kTall) DUET_MULTIPLY(3, 5, 7)
  }
  if constexpr (P == 4) {
    static_assert(!kTall);
    _tile_loadd(5, w + 2 * panel_stride, 64);
    DUET_MULTIPLY(2, 4, 5)
    _tile_loadd(6, w + 3 * panel_stride, 64);
    DUET_MULTIPLY(3, 4, 6)
  }
}

/// What is asked from memory meanwhile, for every tile of weights: so many lines of each panel from `at` on.
struct Ahead {
  const std::byte* at;
  int lines;
};

/// out [rows, 16 · P] = the sums of `steps` steps; whole rows of 4-byte words, `stride` bytes apart.
template <Kind K, int P, bool kTall>
[[gnu::always_inline]] inline void multiply(int rows, int64_t steps, const std::byte* a, int64_t a_stride,
                                            const std::byte* w, int64_t panel_stride, std::byte* out,
                                            int64_t stride, Ahead ahead) {
  DUET_MEMORY_CHANGES();  // activations are stored before they are loaded
  if (t_rows != rows) _tile_loadconfig(&kConfigs[rows - 1]);
  t_rows = rows;
  _tile_zero(0);
  if constexpr (P >= 2) _tile_zero(1);
  if constexpr (kTall || P == 4) _tile_zero(2);
  if constexpr ((kTall && P >= 2) || P == 4) _tile_zero(3);
  int64_t s = 0;
  for (; s + kTileSteps <= steps; s += kTileSteps, a += 64, w += kTileBytes) {
    for (int line = 0; line < ahead.lines; ++line, ahead.at += 64) {
      DUET_UNROLL
      for (int p = 0; p < P; ++p) {
        _mm_prefetch(reinterpret_cast<const char*>(ahead.at + p * panel_stride), _MM_HINT_T0);
      }
    }
    multiply_tile<K, P, kTall>(a, a_stride, w, panel_stride);
  }
  if (s < steps) {
    // What lies behind a row or a panel is not zero: a copy is.
    alignas(64) std::byte last_a[kRows * 64] = {};
    alignas(64) std::byte last_w[P * kTileBytes] = {};
    const int64_t bytes = (steps - s) * 4;
    for (int r = 0; r < rows; ++r) {
      __builtin_memcpy(last_a + r * 64, a + r * a_stride, static_cast<size_t>(bytes));
    }
    for (int p = 0; p < P; ++p) {
      __builtin_memcpy(last_w + p * kTileBytes, w + p * panel_stride, static_cast<size_t>(bytes * 16));
    }
    DUET_MEMORY_CHANGES();
    multiply_tile<K, P, kTall>(last_a, 64, last_w, kTileBytes);
    DUET_MEMORY_CHANGES();  // the copies live until they are loaded
  }
  _tile_stored(0, out, stride);
  if constexpr (P >= 2) _tile_stored(1, out + 64, stride);
  if constexpr (P == 4) {
    _tile_stored(2, out + 128, stride);
    _tile_stored(3, out + 192, stride);
  }
  if constexpr (kTall) {
    _tile_stored(2, out + kTileRows * stride, stride);
    if constexpr (P >= 2) _tile_stored(3, out + kTileRows * stride + 64, stride);
  }
  DUET_MEMORY_CHANGES();
}

template <int P, bool kTall>
[[gnu::noinline]] void tile_of(int rows, int64_t steps, const float* a, const std::byte* w,
                               int64_t panel_stride, float* c, int64_t ldc, bool load_c, Ahead ahead) {
  const auto* words = reinterpret_cast<const std::byte*>(a);
  if (!load_c) {
    multiply<Kind::kBf16, P, kTall>(rows, steps, words, kRowWords * 4, w, panel_stride,
                                    reinterpret_cast<std::byte*>(c), ldc * 4, ahead);
    return;
  }
  alignas(64) float sums[(kTall ? kRows : kTileRows) * P * 16];
  multiply<Kind::kBf16, P, kTall>(rows, steps, words, kRowWords * 4, w, panel_stride,
                                  reinterpret_cast<std::byte*>(sums), P * 64, ahead);
  for (int r = 0; r < rows; ++r) {
    DUET_UNROLL
    for (int p = 0; p < P; ++p) {
      float* to = c + r * ldc + p * 16;
      _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_load_ps(sums + (r * P + p) * 16)));
    }
  }
}

template <int P, bool kTall>
[[gnu::noinline]] void int8_tile_of(int rows, int64_t quads, const std::byte* a, int64_t a_stride,
                                    int64_t scale_at, const std::byte* w, int64_t panel_stride, float* c,
                                    int64_t ldc, bool load_c, Ahead ahead) {
  alignas(64) int32_t sums[(kTall ? kRows : kTileRows) * P * 16];
  multiply<Kind::kInt8, P, kTall>(rows, quads, a, a_stride, w + 128, panel_stride,
                                  reinterpret_cast<std::byte*>(sums), P * 64, ahead);
  __m512 scale[P];
  __m512i excess[P];
  DUET_UNROLL
  for (int p = 0; p < P; ++p) {
    scale[p] = _mm512_loadu_ps(w + p * panel_stride);
    excess[p] = _mm512_loadu_si512(w + p * panel_stride + 64);
  }
  for (int r = 0; r < rows; ++r) {
    const __m512 row_scale = _mm512_set1_ps(*reinterpret_cast<const float*>(a + r * a_stride + scale_at));
    DUET_UNROLL
    for (int p = 0; p < P; ++p) {
      const __m512i sum = _mm512_sub_epi32(_mm512_load_si512(sums + (r * P + p) * 16), excess[p]);
      const __m512 v = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), row_scale), scale[p]);
      float* to = c + r * ldc + p * 16;
      _mm512_storeu_ps(to, load_c ? _mm512_add_ps(_mm512_loadu_ps(to), v) : v);
    }
  }
}

/// Many rows: strip by strip, while the panels that come next are brought from memory, a part by each strip.
/// To the first strip alone their lines would come four times slower than it multiplies.
template <typename Strip>
[[gnu::always_inline]] inline void strips(int64_t rows, int64_t tiles, const std::byte* w,
                                          const std::byte* next, const Strip& strip) {
  const int64_t count = (rows + kRows - 1) / kRows;
  const auto lines = static_cast<int>((kTileSteps + count - 1) / count);
  const int64_t low = rows / count, taller = rows % count;
  int64_t row = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto height = static_cast<int>(low + (i < taller ? 1 : 0));
    const Ahead ahead = next     ? Ahead{next + i * tiles * lines * 64, lines}
                        : i == 0 ? Ahead{w + kAhead, kTileSteps}
                                 : Ahead{w, 0};
    strip(row, height, ahead);
    row += height;
  }
}

void tall(int64_t rows, int64_t steps, const float* a, const std::byte* w, int64_t panel_stride, float* c,
          int64_t ldc, bool load_c, const std::byte* next) {
  strips(
      rows, steps / kTileSteps, w,
      next, [&](int64_t row, int height, Ahead ahead) __attribute__((always_inline)) {
        const auto run = height > kTileRows ? tile_of<2, true> : tile_of<2, false>;
        run(height, steps, a + row * kRowWords, w, panel_stride, c + row * ldc, ldc, load_c, ahead);
      });
}

void int8_tall(int64_t rows, int64_t quads, const std::byte* a, int64_t a_stride, int64_t scale_at,
               const std::byte* w, int64_t panel_stride, float* c, int64_t ldc, bool load_c,
               const std::byte* next) {
  strips(
      rows, quads / kTileSteps, w,
      next, [&](int64_t row, int height, Ahead ahead) __attribute__((always_inline)) {
        const auto run = height > kTileRows ? int8_tile_of<2, true> : int8_tile_of<2, false>;
        run(height, quads, a + row * a_stride, a_stride, scale_at, w, panel_stride, c + row * ldc, ldc,
            load_c, ahead);
      });
}

/// Memory alone limits this product, so what comes next may be asked for at once.
void pair_rows(int rows, int64_t words, const std::byte* a, int64_t a_stride, const std::byte* w, float* c,
               const Streams& ahead) {
  bring(ahead, 0, ahead.lines);
  multiply<Kind::kBf16, 1, false>(rows, words, a, a_stride, w, 0, reinterpret_cast<std::byte*>(c), 64,
                                  {w, 0});
}

template <int R, int P>
void tile(int64_t steps, const float* a, const std::byte* w, int64_t panel_stride, float* c, int64_t ldc,
          bool load_c) {
  tile_of<P, (R > kTileRows)>(R, steps, a, w, panel_stride, c, ldc, load_c, {w + kAhead, kTileSteps});
}
template <int R, int P>
void int8_tile(int64_t quads, const std::byte* a, int64_t a_stride, int64_t scale_at, const std::byte* w,
               int64_t panel_stride, float* c, int64_t ldc, bool load_c, const std::byte* ahead) {
  int8_tile_of<P, (R > kTileRows)>(R, quads, a, a_stride, scale_at, w, panel_stride, c, ldc, load_c,
                                   {ahead, kTileSteps});
}

template <int R>
constexpr TileFn widest_tile() {
  if constexpr (R <= kTileRows) return tile<R, 4>;
  return nullptr;
}
template <int R>
constexpr Int8TileFn widest_int8_tile() {
  if constexpr (R <= kTileRows) return int8_tile<R, 4>;
  return nullptr;
}

template <int... R>
constexpr TileSet make_tiles(std::integer_sequence<int, R...>) {
  return {kRows, true, {{tile<R + 1, 1>, tile<R + 1, 2>, widest_tile<R + 1>()}...}, release, tall};
}
template <int... R>
constexpr Int8Kernels make_int8(std::integer_sequence<int, R...>) {
  return {kRows,   {{int8_tile<R + 1, 1>, int8_tile<R + 1, 2>, widest_int8_tile<R + 1>()}...},
          nullptr, nullptr,
          release, int8_tall};
}

static_assert(kRows <= kMaxTileRows);

/// Rows of which vector registers take as good care: one of bf16, up to four of int8.
constexpr int kFewBf16 = 1, kFewInt8 = 4;

}  // namespace

const TileSet* dot_tiles_amx() {
  static const TileSet tiles = [] {
    TileSet t = make_tiles(std::make_integer_sequence<int, kRows>());
    const TileSet few = bf16_tiles_like_amx();
    for (int r = 0; r < kFewBf16; ++r) __builtin_memcpy(t.tile[r], few.tile[r], sizeof t.tile[r]);
    return t;
  }();
  return &tiles;
}

PairRowsFn pair_rows_amx() {
  return pair_rows;
}

const Int8Kernels* int8_kernels_amx() {
  static const Int8Kernels kernels = [] {
    Int8Kernels k = make_int8(std::make_integer_sequence<int, kRows>());
    const Int8Kernels& vnni = *int8_kernels_avx512();
    for (int r = 0; r < kFewInt8; ++r) __builtin_memcpy(k.tile[r], vnni.tile[r], sizeof k.tile[r]);
    k.quantise_row = vnni.quantise_row;
    k.split_row = vnni.split_row;
    return k;
  }();
  return &kernels;
}

const WeightOnlyKernels* weight_only_amx() {
  static const WeightOnlyKernels kernels = [] {
    WeightOnlyKernels k = *weight_only_avx512bf16();
    k.f8 = f8_tiles_like_amx();
    k.wide = dot_tiles_amx();
    k.piece = 128;
    return k;
  }();
  return &kernels;
}

}  // namespace duet::gemm_detail
