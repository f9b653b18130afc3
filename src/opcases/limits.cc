#include "opcases/limits.h"

#include <algorithm>
#include <atomic>

#include "base/clock.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace duet {
namespace {

std::atomic<float> g_sink;  // keeps results alive

#if defined(__x86_64__)
// Twelve independent chains in registers: enough for a latency of 4 to 6 cycles at two per cycle.
#define DUET_EACH(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11)
#define DUET_SUM(i) +static_cast<float>(a##i[0])
#define DUET_BODY(start, step)           \
  DUET_EACH(start)                       \
  for (int64_t i = 0; i < rounds; ++i) { \
    DUET_EACH(step)                      \
  }                                      \
  g_sink.store(0.0f DUET_EACH(DUET_SUM), std::memory_order_relaxed);

#define DUET_START_128(i) __m128 a##i = x;
#define DUET_STEP_128(i)                     \
  a##i = _mm_add_ps(a##i, _mm_mul_ps(x, x)); \
  asm volatile("" : "+x"(a##i), "+x"(x));
void multiply_portable(int64_t rounds) {
  __m128 x = _mm_set1_ps(0.5f);
  DUET_BODY(DUET_START_128, DUET_STEP_128)
}

#define DUET_START_256(i) __m256 a##i = x;
#define DUET_STEP_256(i)              \
  a##i = _mm256_fmadd_ps(a##i, x, x); \
  asm volatile("" : "+x"(a##i));
__attribute__((target("avx2,fma"))) void multiply_avx2(int64_t rounds) {
  const __m256 x = _mm256_set1_ps(0.5f);
  DUET_BODY(DUET_START_256, DUET_STEP_256)
}

#define DUET_START_I256(i) __m256i a##i = x;
#define DUET_STEP_I256(i)                                 \
  a##i = _mm256_add_epi32(a##i, _mm256_madd_epi16(x, x)); \
  asm volatile("" : "+x"(a##i), "+x"(x));
/// As values of 16 bits: vpmaddubsw does twice as many, but not of two signed numbers, and what that takes
/// besides needs the same two units (gemm16_avx2.cc).
__attribute__((target("avx2"))) void multiply_int8_avx2(int64_t rounds) {
  __m256i x = _mm256_set1_epi16(3);
  DUET_BODY(DUET_START_I256, DUET_STEP_I256)
}

#define DUET_START_512(i) __m512 a##i = x;
#define DUET_STEP_512(i)              \
  a##i = _mm512_fmadd_ps(a##i, x, x); \
  asm volatile("" : "+v"(a##i));
__attribute__((target("avx512f"))) void multiply_avx512(int64_t rounds) {
  const __m512 x = _mm512_set1_ps(0.5f);
  DUET_BODY(DUET_START_512, DUET_STEP_512)
}

#define DUET_STEP_BF16(i)                    \
  a##i = _mm512_dpbf16_ps(a##i, pair, pair); \
  asm volatile("" : "+v"(a##i));
__attribute__((target("avx512f,avx512bf16"))) void multiply_bf16(int64_t rounds) {
  const __m512 x = _mm512_set1_ps(0.5f);
  const __m512bh pair = reinterpret_cast<__m512bh>(x);
  DUET_BODY(DUET_START_512, DUET_STEP_BF16)
}

#define DUET_START_I512(i) __m512i a##i = x;
#define DUET_STEP_I512(i)                 \
  a##i = _mm512_dpbusd_epi32(a##i, x, x); \
  asm volatile("" : "+v"(a##i));
__attribute__((target("avx512f,avx512vnni"))) void multiply_vnni(int64_t rounds) {
  const __m512i x = _mm512_set1_epi32(0x01010101);
  DUET_BODY(DUET_START_I512, DUET_STEP_I512)
}

// Tiles have no names in C: four of sums take twelve products in turns.
#define DUET_TILES(op)                                                                            \
  op(0, 4, 5) op(1, 4, 5) op(2, 4, 5) op(3, 4, 5) op(0, 4, 5) op(1, 4, 5) op(2, 4, 5) op(3, 4, 5) \
      op(0, 4, 5) op(1, 4, 5) op(2, 4, 5) op(3, 4, 5)
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig kWholeTiles;
#define DUET_STEP_AMX_BF16(sum, a, b) _tile_dpbf16ps(sum, a, b);
#define DUET_STEP_AMX_INT8(sum, a, b) _tile_dpbusd(sum, a, b);
__attribute__((target("amx-tile,amx-bf16"))) void multiply_amx_bf16(int64_t rounds) {
  _tile_loadconfig(&kWholeTiles);  // zeroes all tiles
  for (int64_t i = 0; i < rounds; ++i) {
    DUET_TILES(DUET_STEP_AMX_BF16)
  }
  _tile_release();
}
__attribute__((target("amx-tile,amx-int8"))) void multiply_amx_int8(int64_t rounds) {
  _tile_loadconfig(&kWholeTiles);
  for (int64_t i = 0; i < rounds; ++i) {
    DUET_TILES(DUET_STEP_AMX_INT8)
  }
  _tile_release();
}
#endif

struct Loop {
  void (*run)(int64_t rounds);
  int multiply_adds;  // of a step
};

Loop loop_of(CpuLevel level, Units units) {
#if defined(__x86_64__)
  if (level == CpuLevel::kPortable) return {multiply_portable, 4};
  if (level == CpuLevel::kAmx && units != Units::kFloat)
    return units == Units::kInt8 ? Loop{multiply_amx_int8, 16384} : Loop{multiply_amx_bf16, 8192};
  if (units == Units::kInt8)
    return level == CpuLevel::kAvx2 ? Loop{multiply_int8_avx2, 16} : Loop{multiply_vnni, 64};
  if (units == Units::kBf16 && level == CpuLevel::kAvx512Bf16) return {multiply_bf16, 32};
  return level == CpuLevel::kAvx2 ? Loop{multiply_avx2, 8} : Loop{multiply_avx512, 16};
#else
  (void)level, (void)units;
  return {[](int64_t rounds) {
            float a[12] = {};
            for (int64_t i = 0; i < rounds; ++i)
              for (float& v : a) v = v * 0.5f + 0.5f;
            g_sink.store(a[0] + a[11], std::memory_order_relaxed);
          },
          1};
#endif
}

double seconds_of(ThreadPool& pool, const std::function<void(int, int)>& body) {
  const int64_t begin = now_ns();
  pool.parallel_for(pool.threads(), body);
  return static_cast<double>(now_ns() - begin) * 1e-9;
}

}  // namespace

double multiply_rate(CpuLevel level, Units units, ThreadPool& pool) {
  constexpr int64_t kRounds = 100000;  // a millisecond, of tiles six
  const Loop loop = loop_of(level, units);
  double best = 1e9;
  for (int i = 0; i < 3; ++i) best = std::min(best, seconds_of(pool, [&](int, int) { loop.run(kRounds); }));
  return 12.0 * 2.0 * loop.multiply_adds * static_cast<double>(kRounds) * pool.threads() / best * 1e-9;
}

double read_rate(const AlignedBuffer& buffer, ThreadPool& pool) {
  const size_t part = buffer.size() / 256 / static_cast<size_t>(pool.threads()) * 256;
  const double seconds = seconds_of(pool, [&](int item, int) {
    const std::byte* data = buffer.data() + static_cast<size_t>(item) * part;
    const size_t quarter = part / 4;
    // Four streams, each with its sums, so that the loop waits for memory and not for its own additions.
    uint64_t sum[4][8] = {};
    for (size_t at = 0; at < quarter; at += 64) {
      for (size_t q = 0; q < 4; ++q) {
        const auto* words = reinterpret_cast<const uint64_t*>(data + q * quarter + at);
        __builtin_prefetch(words + 128);
        for (size_t j = 0; j < 8; ++j) sum[q][j] ^= words[j];
      }
    }
    uint64_t all = 0;
    for (const auto& s : sum)
      for (const uint64_t v : s) all ^= v;
    g_sink.store(static_cast<float>(all & 1), std::memory_order_relaxed);
  });
  return static_cast<double>(part) * pool.threads() / seconds * 1e-9;
}

}  // namespace duet
