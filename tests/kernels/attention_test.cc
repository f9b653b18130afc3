// MLA attention against its oracle, and the exactness contract bit for bit: a row's result must
// not depend on chunking, neighbours, block numbers, block size or threads.
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

const MlaShape kShapes[] = {
    {.heads = 1, .nope = 16, .rope = 8, .v = 16, .lora = 32, .scale = 0.2f},
    {.heads = 3, .nope = 40, .rope = 6, .v = 24, .lora = 100, .scale = 0.15f},
    {.heads = 5, .nope = 16, .rope = 6, .v = 16, .lora = 32, .scale = 0.2f},
    {.heads = 2, .nope = 7, .rope = 2, .v = 5, .lora = 9, .scale = 0.3f},  // odd in every dimension
};
// For the int8 cache: heads, latent and rotated part beyond what a panel and a group take, and odd.
const MlaShape kInt8Shapes[] = {
    kShapes[0],
    kShapes[3],
    {.heads = 17, .nope = 8, .rope = 6, .v = 8, .lora = 200, .scale = 0.2f},
    {.heads = 3, .nope = 8, .rope = 134, .v = 8, .lora = 261, .scale = 0.05f},
};

/// One sequence: its queries and what it writes to the cache, position by position.
struct TestSequence {
  MlaShape shape;
  int64_t length;
  std::vector<float> q, latent, k_rope;

  TestSequence(const MlaShape& s, int64_t n, uint32_t seed)
      : shape(s),
        length(n),
        q(normal(n * s.heads * (s.nope + s.rope), seed)),
        latent(normal(n * s.lora, seed + 1)),
        k_rope(normal(n * s.rope, seed + 2)) {}
  int64_t q_cols() const { return int64_t{shape.heads} * (shape.nope + shape.rope); }
  int64_t out_cols() const { return int64_t{shape.heads} * shape.v; }
};

struct RunSetup {
  CpuLevel level = CpuLevel::kPortable;
  Rounding rounding = Rounding::kNone;
  DType cache_type = DType::kF32;
  int block_size = 16;
  int threads = 1;
  AttentionForm form = AttentionForm::kExpanded;
};

Paged cache_for(const RunSetup& setup, const MlaShape& shape, std::span<const TestSequence> sequences,
                uint32_t seed) {
  const int64_t width =
      setup.cache_type == DType::kI8 ? latent_row_bytes(shape, DType::kI8) : int64_t{shape.lora} + shape.rope;
  return {setup.cache_type, setup.block_size, width, lengths_of(sequences), seed};
}
void write(const KernelContext& cx, const Paged& paged, const TestSequence& s, size_t index, int64_t first,
           int64_t rows) {
  write_latent(cx, s.shape, {s.latent.data() + first * s.shape.lora, rows, s.shape.lora},
               {s.k_rope.data() + first * s.shape.rope, rows, s.shape.rope}, paged.slots(index, first, rows),
               paged.cache);
}

struct MlaTestWeights {
  std::vector<float> plain;
  MlaWeights packed;
  WeightView view;

  MlaTestWeights(const MlaShape& s, Rounding rounding) {
    const int64_t rows = int64_t{s.heads} * (s.nope + s.v);
    plain = normal(rows * s.lora, 99, 1.0f / std::sqrt(static_cast<float>(s.lora)));
    // What a checkpoint of that type holds: so that packing rounds nothing.
    for (float& w : plain) w = round_to(w, rounding);
    view = {plain.data(), DType::kF32, rows, s.lora, s.lora, 1};
    const DType dtype = rounding == Rounding::kNone   ? DType::kF32
                        : rounding == Rounding::kBf16 ? DType::kBf16
                                                      : DType::kF16;
    packed = pack_mla(s, view, dtype);
  }
};

std::vector<std::vector<float>> run(const RunSetup& setup, const MlaShape& shape,
                                    const MlaTestWeights& weights, std::span<const TestSequence> sequences,
                                    int64_t chunk, uint32_t seed) {
  ThreadPool pool(setup.threads);
  Arena arena(mla_scratch_bytes(shape, setup.threads));
  const KernelContext cx{setup.level, &pool, &arena, setup.rounding};
  const Paged paged = cache_for(setup, shape, sequences, seed);
  ExpandedTiles tiles(shape, setup.rounding, seed % 2 ? 128 : 4096);  // also too little room
  return run_in_chunks(
      paged, sequences, chunk, [&](int64_t) { return setup.form; },
      [&](size_t i, int64_t first, int64_t rows) { write(cx, paged, sequences[i], i, first, rows); },
      [&](ConstRows q, std::span<const AttentionSpan> spans, Rows out) {
        mla_attention(cx, shape, weights.packed, q, paged.cache, spans, out, &tiles);
        EXPECT_EQ(arena.used(), 0u);
      });
}

std::string name_of(const RunSetup& s, const MlaShape& shape, int64_t length) {
  return std::string(to_string(s.level)) + " rounding " + std::to_string(static_cast<int>(s.rounding)) +
         " cache " + to_string(s.cache_type) + " block " + std::to_string(s.block_size) + " heads " +
         std::to_string(shape.heads) + " length " + std::to_string(length) +
         (s.form == AttentionForm::kExpanded ? " expanded" : " absorbed");
}

/// Oracle output of one sequence, from a cache written with the same rounding, and the largest
/// |value| and |score| that went into it (what the error bound is made of).
struct Expected {
  std::vector<float> out;
  double value_size = 0.0, score_size = 0.0;
};

Expected expected(const RunSetup& setup, const TestSequence& s, const MlaTestWeights& weights) {
  const Paged paged = cache_for(setup, s.shape, {&s, 1}, 5);
  KernelContext cx;
  cx.rounding = setup.rounding;
  ref::write_latent(cx, s.shape, {s.latent.data(), s.length, s.shape.lora},
                    {s.k_rope.data(), s.length, s.shape.rope}, paged.slots(0, 0, s.length), paged.cache);
  Expected e;
  e.out.resize(static_cast<size_t>(s.length * s.out_cols()));
  const AttentionSpan span{0, s.length, 0, setup.form, paged.tables[0].data()};
  ref::mla_attention(s.shape, weights.view, {s.q.data(), s.length, s.q_cols()}, paged.cache, {&span, 1},
                     {e.out.data(), s.length, s.out_cols()});
  const auto norm = [](const float* x, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    return std::sqrt(sum);
  };
  double latent = 0.0, rope = 0.0, weight = 0.0, query = 0.0;
  for (int64_t p = 0; p < s.length; ++p) {
    latent = std::max(latent, norm(s.latent.data() + p * s.shape.lora, s.shape.lora));
    rope = std::max(rope, norm(s.k_rope.data() + p * s.shape.rope, s.shape.rope));
    for (int64_t h = 0; h < s.shape.heads; ++h) {
      const int64_t n = s.shape.nope + s.shape.rope;
      query = std::max(query, norm(s.q.data() + p * s.q_cols() + h * n, n));
    }
  }
  for (int64_t r = 0; r < weights.view.rows; ++r) {
    weight = std::max(weight, norm(weights.plain.data() + r * s.shape.lora, s.shape.lora));
  }
  e.value_size = latent * weight;
  e.score_size = static_cast<double>(s.shape.scale) * query *
                 (latent * weight * std::sqrt(static_cast<double>(s.shape.nope)) + rope);
  return e;
}

// A score is a chain of products with inputs rounded to relative u (f32: sums of length k drift by
// about √k · 2⁻²⁴), and rounding errors of a dot product add like a random walk, hence / √lora. An
// error δ in all scores moves a mean of values by at most 2 δ · max|value|; p and the values carry
// three more roundings. The norms assume that every vector is aligned with every other; random ones
// stay at 0.2 to 1 % of that, so a twenty-fifth leaves a factor of four and still sees a lost key.
double error_bound(const Expected& e, const MlaShape& shape, Rounding rounding) {
  const double u = rounding == Rounding::kNone   ? 0x1p-24 * std::sqrt(shape.lora + 64.0)
                   : rounding == Rounding::kBf16 ? 0x1p-8
                                                 : 0x1p-11;
  return e.value_size * (2.0 * u * e.score_size / std::sqrt(shape.lora) + 3.0 * u) / 25.0;
}

TEST(MlaAttention, MatchesTheOracle) {
  constexpr int64_t kLength = 150;
  for (const MlaShape& shape : kShapes) {
    for (const Rounding rounding : kRoundings) {
      const MlaTestWeights weights(shape, rounding);
      for (const DType cache_type : kCacheTypes) {
        const TestSequence s(shape, kLength, 7);
        RunSetup setup{CpuLevel::kPortable, rounding, cache_type, 16, 1, AttentionForm::kExpanded};
        const Expected e = expected(setup, s, weights);
        const double bound = error_bound(e, shape, rounding);
        for (const CpuLevel level : available_cpu_levels()) {
          for (const AttentionForm form : {AttentionForm::kExpanded, AttentionForm::kAbsorbed}) {
            setup.level = level;
            setup.form = form;
            const auto got = run(setup, shape, weights, {&s, 1}, kLength, 3)[0];
            EXPECT_LE(worst_error(got, e.out), bound) << name_of(setup, shape, kLength);
          }
        }
      }
    }
  }
}

/// The oracle reads the same integers. Queries and probabilities are integers of 16 bits, of 13 for the
/// rotated part: half a step of these is 2⁻¹³ of the largest value.
TEST(MlaAttention, Int8CacheMatchesTheOracle) {
  constexpr int64_t kLength = 150;
  for (const MlaShape& shape : kInt8Shapes) {
    for (const Rounding rounding : {Rounding::kNone, Rounding::kBf16}) {
      const MlaTestWeights weights(shape, rounding);
      const TestSequence s(shape, kLength, 7);
      for (const AttentionForm form : {AttentionForm::kExpanded, AttentionForm::kAbsorbed}) {
        RunSetup setup{CpuLevel::kPortable, rounding, DType::kI8, 16, 1, form};
        const Expected e = expected(setup, s, weights);
        const double bound =
            error_bound(e, shape, rounding) +
            (form == AttentionForm::kAbsorbed ? e.value_size * (e.score_size + 1.0) * 0x1p-13 / 25.0 : 0.0);
        for (const CpuLevel level : available_cpu_levels()) {
          setup.level = level;
          const auto got = run(setup, shape, weights, {&s, 1}, kLength, 3)[0];
          EXPECT_LE(worst_error(got, e.out), bound) << name_of(setup, shape, kLength);
        }
      }
    }
  }
}

TEST(MlaAttention, Int8CacheGivesTheSameBitsHoweverItIsCut) {
  for (const CpuLevel level : available_cpu_levels()) {
    for (const MlaShape& shape : kInt8Shapes) {
      const MlaTestWeights weights(shape, Rounding::kNone);
      for (const AttentionForm form : {AttentionForm::kExpanded, AttentionForm::kAbsorbed}) {
        const TestSequence s(shape, 150, 11), other(shape, 129, 12);
        RunSetup setup{level, Rounding::kNone, DType::kI8, 16, 1, form};
        const auto whole = run(setup, shape, weights, {&s, 1}, 150, 1)[0];
        for (const float v : whole) ASSERT_FALSE(std::isnan(v)) << name_of(setup, shape, 150);
        for (const int block_size : {7, 128}) {
          setup.block_size = block_size;
          setup.threads = 2;
          const TestSequence both[] = {other, s};
          const auto got = run(setup, shape, weights, both, 40, 2)[1];
          EXPECT_TRUE(same_bits(whole, got)) << name_of(setup, shape, 150);
        }
      }
    }
  }
}

TEST(MlaAttention, ChunksBlocksAndThreadsChangeNoBit) {
  const int block_sizes[] = {1, 7, 16, 128};
  for (const CpuLevel level : available_cpu_levels()) {
    for (const MlaShape& shape : kShapes) {
      for (const Rounding rounding : kRoundings) {
        const MlaTestWeights weights(shape, rounding);
        const DType cache_type = kCacheTypes[static_cast<int>(rounding)];
        for (const AttentionForm form : {AttentionForm::kExpanded, AttentionForm::kAbsorbed}) {
          for (const int64_t length : {int64_t{1}, int64_t{65}, int64_t{150}}) {
            const TestSequence s(shape, length, 11);
            RunSetup setup{level, rounding, cache_type, 16, 1, form};
            const auto whole = run(setup, shape, weights, {&s, 1}, length, 1)[0];
            for (const float v : whole) ASSERT_FALSE(std::isnan(v)) << name_of(setup, shape, length);
            uint32_t seed = 2;
            for (const int64_t chunk : {1, 7, 32, 64, 1000}) {
              if (chunk == 1 && length > 65) continue;  // slow, and the tile edge at 64 + 1 is seen above
              setup.block_size = block_sizes[seed % 4];
              setup.threads = 1 + static_cast<int>(seed % 3);
              const auto got = run(setup, shape, weights, {&s, 1}, chunk, seed++)[0];
              EXPECT_TRUE(same_bits(whole, got)) << name_of(setup, shape, length) << " chunk " << chunk;
            }
          }
        }
      }
    }
  }
}

TEST(MlaAttention, NeighboursChangeNoBit) {
  const MlaShape& shape = kShapes[1];
  for (const CpuLevel level : available_cpu_levels()) {
    for (const Rounding rounding : kRoundings) {
      const MlaTestWeights weights(shape, rounding);
      for (const AttentionForm form : {AttentionForm::kExpanded, AttentionForm::kAbsorbed}) {
        const RunSetup setup{level, rounding, DType::kF32, 7, 2, form};
        std::vector<TestSequence> all;
        for (const int64_t length : {3, 300, 64, 1, 129, 40}) {
          all.emplace_back(shape, length, static_cast<uint32_t>(100 + length));
        }
        const auto together = run(setup, shape, weights, all, 300, 4);
        for (size_t i = 0; i < all.size(); ++i) {
          const auto alone = run(setup, shape, weights, {&all[i], 1}, 300, 8)[0];
          EXPECT_TRUE(same_bits(alone, together[i])) << name_of(setup, shape, all[i].length);
        }
      }
    }
  }
}

/// Long enough for several row blocks, segments and waves.
TEST(MlaAttention, LongContextIsExactAndClose) {
  const MlaShape shape{.heads = 2, .nope = 16, .rope = 4, .v = 8, .lora = 16, .scale = 0.25f};
  const int64_t length = 2600;
  const TestSequence s(shape, length, 21);
  const CpuLevel level = available_cpu_levels().back();
  const MlaTestWeights weights(shape, Rounding::kNone);
  std::vector<float> results[2];
  for (const AttentionForm form : {AttentionForm::kExpanded, AttentionForm::kAbsorbed}) {
    RunSetup setup{level, Rounding::kNone, DType::kF32, 16, 1, form};
    auto& whole = results[static_cast<int>(form)];
    whole = run(setup, shape, weights, {&s, 1}, length, 1)[0];
    setup.threads = 3;
    EXPECT_TRUE(same_bits(whole, run(setup, shape, weights, {&s, 1}, 700, 2)[0]));
  }
  for (size_t i = 0; i < results[0].size(); ++i) ASSERT_NEAR(results[0][i], results[1][i], 2e-5) << i;
}

/// A later token whose key or value is not a number must not reach an earlier row of its tile.
TEST(MlaAttention, LaterTokensNeverLeakBackwards) {
  const MlaShape& shape = kShapes[0];
  for (const CpuLevel level : available_cpu_levels()) {
    for (const Rounding rounding : kRoundings) {
      const MlaTestWeights weights(shape, rounding);
      const RunSetup setup{level, rounding, DType::kF32, 16, 1, AttentionForm::kExpanded};
      const TestSequence clean(shape, 40, 31);
      TestSequence spoilt = clean;
      for (int64_t c = 0; c < shape.lora; ++c)
        spoilt.latent[static_cast<size_t>(25 * shape.lora + c)] = 1e30f;
      spoilt.latent[static_cast<size_t>(30 * shape.lora)] = std::numeric_limits<float>::infinity();
      const auto a = run(setup, shape, weights, {&clean, 1}, 40, 1)[0];
      const auto b = run(setup, shape, weights, {&spoilt, 1}, 40, 1)[0];
      const auto row = static_cast<size_t>(clean.out_cols());
      EXPECT_EQ(std::memcmp(a.data(), b.data(), 25 * row * sizeof(float)), 0) << name_of(setup, shape, 40);
      // Also out of a tile that calls share.
      const TestSequence long_clean(shape, 300, 32);
      TestSequence long_spoilt = long_clean;
      long_spoilt.latent[static_cast<size_t>(200 * shape.lora)] = std::numeric_limits<float>::infinity();
      const auto c = run(setup, shape, weights, {&long_clean, 1}, 300, 2)[0];
      const auto d = run(setup, shape, weights, {&long_spoilt, 1}, 130, 2)[0];
      EXPECT_EQ(std::memcmp(c.data(), d.data(), 200 * row * sizeof(float)), 0) << name_of(setup, shape, 300);
    }
  }
}

TEST(MlaAttention, MixedFormsAndStridesInOneCall) {
  const MlaShape& shape = kShapes[1];
  const CpuLevel level = available_cpu_levels().back();
  const MlaTestWeights weights(shape, Rounding::kBf16);
  const RunSetup setup{level, Rounding::kBf16, DType::kBf16, 16, 2, AttentionForm::kExpanded};
  std::vector<TestSequence> all;
  for (const int64_t length : {50, 90}) all.emplace_back(shape, length, static_cast<uint32_t>(length));
  ThreadPool pool(2);
  Arena arena(mla_scratch_bytes(shape, 2));
  const KernelContext cx{level, &pool, &arena, Rounding::kBf16};
  const Paged paged = cache_for(setup, shape, all, 6);
  write(cx, paged, all[0], 0, 0, 50);
  write(cx, paged, all[1], 1, 0, 90);
  const int64_t q_cols = all[0].q_cols(), out_cols = all[0].out_cols();
  const int64_t q_stride = q_cols + 5, out_stride = out_cols + 3;
  // Row 0: last token of sequence 1, absorbed. Rows 1..50: sequence 0, expanded.
  std::vector<float> q(static_cast<size_t>(51 * q_stride)), out(static_cast<size_t>(51 * out_stride), -5.0f);
  std::copy_n(all[1].q.data() + 89 * q_cols, q_cols, q.data());
  for (int64_t i = 0; i < 50; ++i)
    std::copy_n(all[0].q.data() + i * q_cols, q_cols, q.data() + (i + 1) * q_stride);
  const AttentionSpan spans[] = {{0, 1, 89, AttentionForm::kAbsorbed, paged.tables[1].data()},
                                 {1, 50, 0, AttentionForm::kExpanded, paged.tables[0].data()}};
  mla_attention(cx, shape, weights.packed, {q.data(), 51, q_cols, q_stride}, paged.cache, spans,
                {out.data(), 51, out_cols, out_stride});
  RunSetup absorbed = setup;
  absorbed.form = AttentionForm::kAbsorbed;
  const auto a = run(setup, shape, weights, {&all[0], 1}, 50, 1)[0];
  const auto b = run(absorbed, shape, weights, {&all[1], 1}, 90, 1)[0];
  EXPECT_EQ(std::memcmp(out.data(), b.data() + 89 * out_cols, static_cast<size_t>(out_cols) * 4), 0);
  for (int64_t i = 0; i < 50; ++i) {
    EXPECT_EQ(std::memcmp(out.data() + (i + 1) * out_stride, a.data() + i * out_cols,
                          static_cast<size_t>(out_cols) * 4),
              0)
        << i;
    for (int64_t c = out_cols; c < out_stride; ++c)
      EXPECT_EQ(out[static_cast<size_t>(i * out_stride + c)], -5.0f);
  }
}

TEST(MlaAttention, NothingToDo) {
  const MlaShape& shape = kShapes[0];
  const MlaTestWeights weights(shape, Rounding::kNone);
  Arena arena(mla_scratch_bytes(shape, 1));
  const KernelContext cx{CpuLevel::kPortable, nullptr, &arena, Rounding::kNone};
  const PagedCache cache{nullptr, DType::kF32, 16};
  mla_attention(cx, shape, weights.packed, {nullptr, 0, 24}, cache, {}, {nullptr, 0, 16});
  const AttentionSpan empty[] = {{0, 0, 10, AttentionForm::kExpanded, nullptr},
                                 {0, 0, 10, AttentionForm::kAbsorbed, nullptr}};
  mla_attention(cx, shape, weights.packed, {nullptr, 0, 24}, cache, empty, {nullptr, 0, 16});
  EXPECT_EQ(arena.used(), 0u);
}

TEST(WriteLatent, RoundsAsTheOracleDoes) {
  const MlaShape& shape = kShapes[1];
  const int64_t width = shape.lora + shape.rope;
  const TestSequence s(shape, 9, 41);
  const std::vector<int64_t> slots = {5, 0, 30, 7, 8, 9, 2, 31, 12};
  for (const CpuLevel level : available_cpu_levels()) {
    for (const Rounding rounding : kRoundings) {
      for (const DType type : kCacheTypes) {
        std::vector<std::byte> a(static_cast<size_t>(32 * width) * dtype_bytes(type), std::byte{0x55}), b = a;
        const KernelContext cx{level, nullptr, nullptr, rounding};
        const ConstRows latent{s.latent.data(), 9, shape.lora}, rope{s.k_rope.data(), 9, shape.rope};
        write_latent(cx, shape, latent, rope, slots, {a.data(), type, 16});
        ref::write_latent(cx, shape, latent, rope, slots, {b.data(), type, 16});
        EXPECT_EQ(a, b) << to_string(level) << " " << to_string(type) << " " << static_cast<int>(rounding);
      }
    }
  }
}

TEST(WriteLatent, MakesTheIntegersOfTheOracle) {
  for (const MlaShape& shape : kInt8Shapes) {
    TestSequence s(shape, 4, 43);
    s.latent[static_cast<size_t>(shape.lora)] = std::numeric_limits<float>::quiet_NaN();
    for (int64_t c = 0; c < shape.lora; ++c) s.latent[static_cast<size_t>(2 * shape.lora + c)] = 0.0f;
    s.k_rope[static_cast<size_t>(3 * shape.rope)] = std::numeric_limits<float>::infinity();
    const std::vector<int64_t> slots = {5, 0, 30, 7};
    for (const CpuLevel level : available_cpu_levels()) {
      std::vector<std::byte> a(static_cast<size_t>(32 * latent_row_bytes(shape, DType::kI8)),
                               std::byte{0x55});
      std::vector<std::byte> b = a;
      const KernelContext cx{level, nullptr, nullptr, Rounding::kBf16};
      const ConstRows latent{s.latent.data(), 4, shape.lora}, rope{s.k_rope.data(), 4, shape.rope};
      write_latent(cx, shape, latent, rope, slots, {a.data(), DType::kI8, 16});
      ref::write_latent(cx, shape, latent, rope, slots, {b.data(), DType::kI8, 16});
      // All but the integers next to a scale that is not finite.
      for (const int64_t slot : {5, 30}) {
        const int64_t bytes = latent_row_bytes(shape, DType::kI8);
        EXPECT_EQ(std::memcmp(a.data() + slot * bytes, b.data() + slot * bytes, static_cast<size_t>(bytes)),
                  0)
            << to_string(level) << " slot " << slot << " lora " << shape.lora;
      }
      float scales[2];
      const int64_t bytes = latent_row_bytes(shape, DType::kI8), groups = (shape.lora + 127) / 128;
      std::memcpy(&scales[0], a.data(), 4);
      std::memcpy(&scales[1], a.data() + 7 * bytes + 4 * groups, 4);
      EXPECT_TRUE(std::isnan(scales[0]) && std::isinf(scales[1])) << to_string(level);
    }
  }
}

}  // namespace
}  // namespace duet
