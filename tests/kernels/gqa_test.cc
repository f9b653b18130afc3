// Grouped-query attention against its oracle, and the exactness contract bit for bit: a row's result must
// not depend on chunking, neighbours, block numbers, block size, threads, or the form of its span.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "attention_support.h"
#include "kernels/ref/attention.h"

namespace duet {
namespace {

const GqaShape kShapes[] = {
    {.heads = 1, .kv_heads = 1, .head_dim = 16, .scale = 0.25f},
    {.heads = 6, .kv_heads = 2, .head_dim = 40, .scale = 0.15f},
    {.heads = 7, .kv_heads = 1, .head_dim = 32, .scale = 0.18f},
    {.heads = 4, .kv_heads = 4, .head_dim = 9, .scale = 0.3f},  // odd
    {.heads = 70, .kv_heads = 1, .head_dim = 8, .scale = 0.3f},
};

/// One sequence: its queries and what it writes to the cache, position by position.
struct TestSequence {
  GqaShape shape;
  int64_t length;
  std::vector<float> q, k, v;

  TestSequence(const GqaShape& s, int64_t n, uint32_t seed)
      : shape(s),
        length(n),
        q(normal(n * q_cols(), seed)),
        k(normal(n * kv_cols(), seed + 1)),
        v(normal(n * kv_cols(), seed + 2)) {}
  int64_t q_cols() const { return int64_t{shape.heads} * shape.head_dim; }
  int64_t out_cols() const { return q_cols(); }
  int64_t kv_cols() const { return int64_t{shape.kv_heads} * shape.head_dim; }
};

struct RunSetup {
  CpuLevel level = CpuLevel::kPortable;
  Rounding rounding = Rounding::kNone;
  DType cache_type = DType::kF32;
  int block_size = 16;
  int threads = 1;
};

std::string name_of(const RunSetup& s, const GqaShape& shape, int64_t length) {
  return std::string(to_string(s.level)) + " rounding " + std::to_string(static_cast<int>(s.rounding)) +
         " cache " + to_string(s.cache_type) + " block " + std::to_string(s.block_size) + " heads " +
         std::to_string(shape.heads) + " length " + std::to_string(length) + " threads " +
         std::to_string(s.threads);
}

Paged cache_for(const RunSetup& setup, const GqaShape& shape, std::span<const TestSequence> sequences,
                uint32_t seed) {
  return {setup.cache_type, setup.block_size, int64_t{2} * shape.kv_heads * shape.head_dim,
          lengths_of(sequences), seed};
}

std::vector<std::vector<float>> run(const RunSetup& setup, const GqaShape& shape,
                                    std::span<const TestSequence> sequences, int64_t chunk, uint32_t seed) {
  ThreadPool pool(setup.threads);
  Arena arena(gqa_scratch_bytes(shape, setup.threads));
  const KernelContext cx{setup.level, setup.threads > 1 ? &pool : nullptr, &arena, setup.rounding};
  const Paged paged = cache_for(setup, shape, sequences, seed);
  return run_in_chunks(
      paged, sequences, chunk,
      [](int64_t rows) { return rows == 1 ? AttentionForm::kAbsorbed : AttentionForm::kExpanded; },
      [&](size_t i, int64_t first, int64_t rows) {
        const TestSequence& s = sequences[i];
        const int64_t at = first * s.kv_cols();
        write_kv(cx, shape, {s.k.data() + at, rows, s.kv_cols()}, {s.v.data() + at, rows, s.kv_cols()},
                 paged.slots(i, first, rows), paged.cache);
      },
      [&](ConstRows q, std::span<const AttentionSpan> spans, Rows out) {
        gqa_attention(cx, shape, q, paged.cache, spans, out);
        EXPECT_EQ(arena.used(), 0u);
      });
}

std::vector<float> expected(const RunSetup& setup, const TestSequence& s) {
  const Paged paged = cache_for(setup, s.shape, {&s, 1}, 5);
  KernelContext cx;
  cx.rounding = setup.rounding;
  ref::write_kv(cx, s.shape, {s.k.data(), s.length, s.kv_cols()}, {s.v.data(), s.length, s.kv_cols()},
                paged.slots(0, 0, s.length), paged.cache);
  std::vector<float> out(static_cast<size_t>(s.length * s.q_cols()));
  const AttentionSpan span{0, s.length, 0, AttentionForm::kExpanded, paged.tables[0].data()};
  ref::gqa_attention(s.shape, {s.q.data(), s.length, s.q_cols()}, paged.cache, {&span, 1},
                     {out.data(), s.length, s.q_cols()});
  return out;
}

// The oracle reads the same rounded cache, so what differs is the rounding of the query (relative u) in the
// scores, which are scale · √head_dim wide, and of probabilities (u each, a random walk): an error δ in all
// scores moves a mean of values of size ≤ 4 by at most 2 δ · 4. In practice a tenth of that.
double error_bound(const GqaShape& shape, Rounding rounding) {
  const double u = rounding == Rounding::kNone   ? 0x1p-24 * std::sqrt(shape.head_dim + 64.0)
                   : rounding == Rounding::kBf16 ? 0x1p-8
                                                 : 0x1p-11;
  const double score = static_cast<double>(shape.scale) * 4.0 * std::sqrt(shape.head_dim);
  return 4.0 * u * (2.0 * score / std::sqrt(shape.head_dim) + 2.0) / 2.0;
}

TEST(GqaAttention, MatchesTheOracle) {
  constexpr int64_t kLength = 150;
  for (const GqaShape& shape : kShapes) {
    for (const Rounding rounding : kRoundings) {
      for (const DType cache_type : kCacheTypes) {
        const TestSequence s(shape, kLength, 7);
        RunSetup setup{CpuLevel::kPortable, rounding, cache_type, 16, 1};
        const std::vector<float> want = expected(setup, s);
        for (const CpuLevel level : available_cpu_levels()) {
          setup.level = level;
          EXPECT_LE(worst_error(run(setup, shape, {&s, 1}, kLength, 3)[0], want),
                    error_bound(shape, rounding))
              << name_of(setup, shape, kLength);
        }
      }
    }
  }
}

TEST(GqaAttention, ChunksBlocksThreadsAndFormChangeNoBit) {
  const int block_sizes[] = {1, 7, 16, 128};
  for (const CpuLevel level : available_cpu_levels()) {
    for (const GqaShape& shape : kShapes) {
      for (const Rounding rounding : kRoundings) {
        for (const int64_t length : {int64_t{1}, int64_t{65}, int64_t{150}}) {
          const TestSequence s(shape, length, 11);
          RunSetup setup{level, rounding, kCacheTypes[static_cast<int>(rounding)], 16, 1};
          const auto whole = run(setup, shape, {&s, 1}, length, 1)[0];
          for (const float v : whole) ASSERT_FALSE(std::isnan(v)) << name_of(setup, shape, length);
          uint32_t seed = 2;
          for (const int64_t chunk : {1, 7, 32, 64, 1000}) {
            setup.block_size = block_sizes[seed % 4];
            setup.threads = 1 + static_cast<int>(seed % 3);
            const auto got = run(setup, shape, {&s, 1}, chunk, seed++)[0];
            EXPECT_TRUE(same_bits(whole, got)) << name_of(setup, shape, length) << " chunk " << chunk;
          }
        }
      }
    }
  }
}

TEST(GqaAttention, NeighboursChangeNoBit) {
  const GqaShape& shape = kShapes[1];
  for (const CpuLevel level : available_cpu_levels()) {
    for (const Rounding rounding : kRoundings) {
      const RunSetup setup{level, rounding, DType::kF32, 7, 2};
      std::vector<TestSequence> all;
      for (const int64_t length : {3, 300, 64, 1, 129, 40})
        all.emplace_back(shape, length, static_cast<uint32_t>(100 + length));
      const auto together = run(setup, shape, all, 300, 4);
      for (size_t i = 0; i < all.size(); ++i) {
        EXPECT_TRUE(same_bits(run(setup, shape, {&all[i], 1}, 300, 8)[0], together[i]))
            << name_of(setup, shape, all[i].length);
      }
    }
  }
}

/// Several row blocks, segments and waves; single tokens whose segments are split over threads.
TEST(GqaAttention, LongContextIsExactAndClose) {
  const GqaShape shape{.heads = 4, .kv_heads = 2, .head_dim = 16, .scale = 0.25f};
  const int64_t length = 2600;
  const TestSequence s(shape, length, 21);
  for (const Rounding rounding : {Rounding::kNone, Rounding::kBf16}) {
    RunSetup setup{available_cpu_levels().back(), rounding, kCacheTypes[static_cast<int>(rounding)], 16, 1};
    const auto whole = run(setup, shape, {&s, 1}, length, 1)[0];
    EXPECT_LE(worst_error(whole, expected(setup, s)), error_bound(shape, rounding));
    setup.threads = 3;
    EXPECT_TRUE(same_bits(whole, run(setup, shape, {&s, 1}, 700, 2)[0]));
    EXPECT_TRUE(same_bits(whole, run(setup, shape, {&s, 1}, 1, 3)[0]));
  }
}

/// A later token whose key or value is not a number must not reach an earlier row of its tile.
TEST(GqaAttention, LaterTokensNeverLeakBackwards) {
  const GqaShape& shape = kShapes[1];
  for (const CpuLevel level : available_cpu_levels()) {
    for (const Rounding rounding : kRoundings) {
      for (const DType cache_type : kCacheTypes) {
        const RunSetup setup{level, rounding, cache_type, 16, 1};
        const TestSequence clean(shape, 40, 31);
        TestSequence spoilt = clean;
        const auto cols = static_cast<size_t>(clean.kv_cols());
        for (size_t c = 0; c < cols; ++c) spoilt.v[25 * cols + c] = 1e30f;
        spoilt.v[30 * cols] = std::numeric_limits<float>::infinity();
        spoilt.k[31 * cols] = std::numeric_limits<float>::quiet_NaN();
        const auto a = run(setup, shape, {&clean, 1}, 40, 1)[0];
        const auto b = run(setup, shape, {&spoilt, 1}, 40, 1)[0];
        const auto row = static_cast<size_t>(clean.q_cols());
        EXPECT_EQ(std::memcmp(a.data(), b.data(), 25 * row * sizeof(float)), 0) << name_of(setup, shape, 40);
        EXPECT_TRUE(std::isinf(b[30 * row]) || std::isnan(b[30 * row]));
      }
    }
  }
}

TEST(GqaAttention, StridesAndNothingToDo) {
  const GqaShape& shape = kShapes[1];
  const TestSequence s(shape, 50, 9);
  const RunSetup setup{available_cpu_levels().back(), Rounding::kBf16, DType::kBf16, 16, 1};
  Arena arena(gqa_scratch_bytes(shape, 1));
  const KernelContext cx{setup.level, nullptr, &arena, setup.rounding};
  const Paged paged = cache_for(setup, shape, {&s, 1}, 6);
  write_kv(cx, shape, {s.k.data(), 50, s.kv_cols()}, {s.v.data(), 50, s.kv_cols()}, paged.slots(0, 0, 50),
           paged.cache);
  const int64_t cols = s.q_cols(), q_stride = cols + 5, out_stride = cols + 3;
  std::vector<float> q(static_cast<size_t>(50 * q_stride)), out(static_cast<size_t>(50 * out_stride), -5.0f);
  for (int64_t i = 0; i < 50; ++i) std::copy_n(s.q.data() + i * cols, cols, q.data() + i * q_stride);
  const AttentionSpan spans[] = {{0, 50, 0, AttentionForm::kExpanded, paged.tables[0].data()},
                                 {50, 0, 10, AttentionForm::kExpanded, nullptr}};
  gqa_attention(cx, shape, {q.data(), 50, cols, q_stride}, paged.cache, spans,
                {out.data(), 50, cols, out_stride});
  const auto want = run(setup, shape, {&s, 1}, 50, 1)[0];
  for (int64_t i = 0; i < 50; ++i) {
    EXPECT_EQ(std::memcmp(out.data() + i * out_stride, want.data() + i * cols, static_cast<size_t>(cols) * 4),
              0);
    for (int64_t c = cols; c < out_stride; ++c)
      EXPECT_EQ(out[static_cast<size_t>(i * out_stride + c)], -5.0f);
  }
  gqa_attention(cx, shape, {nullptr, 0, cols}, paged.cache, {}, {nullptr, 0, cols});
  EXPECT_EQ(arena.used(), 0u);
}

TEST(WriteKv, RoundsAsTheOracleDoes) {
  const GqaShape& shape = kShapes[1];
  const TestSequence s(shape, 9, 41);
  const std::vector<int64_t> slots = {5, 0, 30, 7, 8, 9, 2, 31, 12};
  for (const CpuLevel level : available_cpu_levels()) {
    for (const Rounding rounding : kRoundings) {
      for (const DType type : kCacheTypes) {
        std::vector<std::byte> a(static_cast<size_t>(32 * 2 * s.kv_cols()) * dtype_bytes(type),
                                 std::byte{0x55}),
            b = a;
        const KernelContext cx{level, nullptr, nullptr, rounding};
        const ConstRows k{s.k.data(), 9, s.kv_cols()}, v{s.v.data(), 9, s.kv_cols()};
        write_kv(cx, shape, k, v, slots, {a.data(), type, 16});
        ref::write_kv(cx, shape, k, v, slots, {b.data(), type, 16});
        EXPECT_EQ(a, b) << to_string(level) << " " << to_string(type) << " " << static_cast<int>(rounding);
      }
    }
  }
}

}  // namespace
}  // namespace duet
