#include "load/weights.h"

#include <array>
#include <cmath>
#include <numeric>

#include "helpers.h"
#include "load/checkpoint.h"

namespace duet {
namespace {

std::vector<float> values_of(const WeightView& v) {
  std::vector<float> out;
  for (int64_t r = 0; r < v.rows; ++r) {
    for (int64_t c = 0; c < v.cols; ++c) {
      const auto at = static_cast<size_t>(r * v.row_stride + c * v.col_stride);
      float value = 0;
      convert_to_f32(static_cast<const std::byte*>(v.data) + at * dtype_bytes(v.dtype), v.dtype, &value, 1);
      out.push_back(value);
    }
  }
  return out;
}

// The same slice taken from the whole matrix.
std::vector<float> cut(const std::vector<float>& whole, int64_t cols, Slice rows, Slice columns) {
  std::vector<float> out;
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    for (int64_t c = columns.begin; c < columns.end; ++c)
      out.push_back(whole[static_cast<size_t>(r * cols + c)]);
  }
  return out;
}

std::unique_ptr<WeightSource> open_dir(const std::string& dir) {
  return checkpoint_weights(std::make_shared<const Checkpoint>(Checkpoint::open(dir)));
}

// "m" [3, 5] counts from 0, "v" [4] counts from 10, both in `dtype`, `pad` bytes into the data.
std::unique_ptr<WeightSource> small_source(const TempDir& dir, DType dtype, const std::string& dtype_name,
                                           int pad) {
  const size_t size = dtype_bytes(dtype);
  std::vector<float> m(15);
  std::vector<float> v(4);
  std::iota(m.begin(), m.end(), 0.0f);
  std::iota(v.begin(), v.end(), 10.0f);
  const size_t p = static_cast<size_t>(pad);
  std::string data(p + 19 * size, '\0');
  std::vector<std::byte> stored(19 * size);
  convert_from_f32(m.data(), dtype, stored.data(), 15);
  convert_from_f32(v.data(), dtype, stored.data() + 15 * size, 4);
  std::memcpy(data.data() + p, stored.data(), stored.size());
  const auto entry = [&](const char* name, const char* shape, size_t begin, size_t end) {
    return "\"" + std::string(name) + "\":{\"dtype\":\"" + dtype_name + "\",\"shape\":" + shape +
           ",\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
  };
  std::string header = "{\"pad\":{\"dtype\":\"U8\",\"shape\":[" + std::to_string(pad) +
                       "],\"data_offsets\":[0," + std::to_string(pad) + "]}," +
                       entry("m", "[3,5]", p, p + 15 * size) + "," +
                       entry("v", "[4]", p + 15 * size, p + 19 * size) + "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  dir.write("model.safetensors", safetensors_bytes(header, 0) + data);
  return open_dir(dir.path());
}

TEST(CheckpointWeights, ServesSlicesOfEveryDTypeAlignedOrNot) {
  const std::vector<std::pair<DType, std::string>> dtypes = {
      {DType::kF32, "F32"}, {DType::kBf16, "BF16"}, {DType::kF16, "F16"}};
  for (const auto& [dtype, name] : dtypes) {
    for (const int pad : {0, 1, 3}) {
      SCOPED_TRACE(name + " at " + std::to_string(pad));
      const TempDir dir;
      const auto source = small_source(dir, dtype, name, pad);
      std::vector<float> whole(15);
      std::iota(whole.begin(), whole.end(), 0.0f);
      for (const Slice rows : {Slice{0, 3}, Slice{1, 2}, Slice{2, 2}}) {
        for (const Slice cols : {Slice{0, 5}, Slice{1, 4}, Slice{5, 5}}) {
          const LoadedMatrix m = source->matrix("m", 3, 5, rows, cols);
          EXPECT_EQ(m.view.dtype, dtype);
          EXPECT_EQ(m.view.rows, rows.size());
          EXPECT_EQ(m.view.cols, cols.size());
          EXPECT_EQ(values_of(m.view), cut(whole, 5, rows, cols));
          EXPECT_TRUE(m.view.data == nullptr ||
                      reinterpret_cast<uintptr_t>(m.view.data) % dtype_bytes(dtype) == 0);
          if (pad == 0) {
            EXPECT_EQ(m.owned.size(), 0u) << "aligned data is served in place";
          }
        }
      }
      EXPECT_EQ(values_of(source->matrix("m", 3, 5).view), whole);
      EXPECT_EQ(source->vector_f32("v", 4), (std::vector<float>{10, 11, 12, 13}));
      EXPECT_EQ(source->vector_f32("v", 4, {1, 3}), (std::vector<float>{11, 12}));
      EXPECT_TRUE(source->vector_f32("v", 4, {2, 2}).empty());
      const auto table = source->embedding("m", 3, 5);
      std::array<float, 5> row{};
      table->lookup(2, row.data());
      EXPECT_EQ(row, (std::array<float, 5>{10, 11, 12, 13, 14}));
      EXPECT_TRUE(source->has("m"));
      EXPECT_FALSE(source->has("n"));
      EXPECT_EQ(source->names(), (std::vector<std::string>{"m", "pad", "v"}));
    }
  }
}

TEST(CheckpointWeights, ErrorsNameFileTensorAndWhatWasExpected) {
  const TempDir dir;
  const auto source = small_source(dir, DType::kF32, "F32", 4);
  expect_error(
      ErrorKind::kCorrupt, [&] { source->matrix("m", 5, 3); }, "model.safetensors", "\"m\"", "[3, 5]",
      "[5, 3]");
  expect_error(
      ErrorKind::kCorrupt, [&] { source->vector_f32("m", 15); }, "\"m\"", "[15]");
  expect_error(
      ErrorKind::kNotFound, [&] { source->embedding("n", 3, 5); }, "\"n\"", "missing");
  expect_error(
      ErrorKind::kUnsupported, [&] { source->vector_f32("pad", 4); }, "\"pad\"", "U8", "BF16");
  const auto table = source->embedding("m", 3, 5);
  std::array<float, 5> row{};
  expect_error(
      ErrorKind::kInvalidArgument, [&] { table->lookup(3, row.data()); }, "token id 3", "[0, 3)");
  expect_error(
      ErrorKind::kInvalidArgument, [&] { table->lookup(-1, row.data()); }, "token id -1");
}

TEST(DummyWeights, EverySliceIsACutOfTheWhole) {
  constexpr int64_t kRows = 7;
  constexpr int64_t kCols = 2500;  // more than one piece of the generator
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
    const auto source = dummy_weights({dtype, 3});
    const std::vector<float> whole = values_of(source->matrix("w.weight", kRows, kCols).view);
    for (int ranks = 1; ranks <= 8; ++ranks) {
      for (int rank = 0; rank < ranks; ++rank) {
        const Slice rows = shard(kRows, rank, ranks);
        const Slice cols = shard(kCols, rank, ranks);
        EXPECT_EQ(values_of(source->matrix("w.weight", kRows, kCols, rows, {0, kCols}).view),
                  cut(whole, kCols, rows, {0, kCols}));
        EXPECT_EQ(values_of(source->matrix("w.weight", kRows, kCols, {0, kRows}, cols).view),
                  cut(whole, kCols, {0, kRows}, cols));
      }
    }
    std::vector<float> row(kCols);
    source->embedding("w.weight", kRows, kCols)->lookup(5, row.data());
    EXPECT_EQ(row, cut(whole, kCols, {5, 6}, {0, kCols}));
    EXPECT_EQ(source->vector_f32("w.weight", kRows * kCols), whole);
    EXPECT_EQ(source->vector_f32("w.weight", kRows * kCols, {1000, 2100}),
              std::vector<float>(whole.begin() + 1000, whole.begin() + 2100));
  }
}

TEST(DummyWeights, ValuesDependOnSeedAndNameAndAreRoundedToTheDType) {
  const auto get = [](DType dtype, uint64_t seed, const char* name) {
    return dummy_weights({dtype, seed})->vector_f32(name, 3000);
  };
  const std::vector<float> base = get(DType::kF32, 0, "a.weight");
  EXPECT_EQ(base, get(DType::kF32, 0, "a.weight"));
  EXPECT_NE(base, get(DType::kF32, 1, "a.weight"));
  EXPECT_NE(base, get(DType::kF32, 0, "b.weight"));
  const std::vector<float> narrow = get(DType::kBf16, 0, "a.weight");
  for (size_t i = 0; i < base.size(); ++i) ASSERT_EQ(narrow[i], round_to(base[i], Rounding::kBf16));
}

TEST(DummyWeights, LookNormalAndIndependent) {
  const size_t n = 1 << 18;
  const std::vector<float> a = dummy_weights({})->vector_f32("a.weight", n);
  const std::vector<float> b = dummy_weights({})->vector_f32("b.weight", n);
  double sum = 0, squares = 0, fourth = 0, neighbours = 0, cross = 0;
  for (size_t i = 0; i < n; ++i) {
    const double z = a[i] / 0.02;
    sum += z;
    squares += z * z;
    fourth += z * z * z * z;
    cross += z * b[i] / 0.02;
    if (i > 0) neighbours += z * a[i - 1] / 0.02;
  }
  // Five standard errors of each estimate (σ of the mean is 1/√n = 0.002).
  EXPECT_NEAR(sum / n, 0.0, 0.01);
  EXPECT_NEAR(squares / n, 1.0, 0.015);
  EXPECT_NEAR(fourth / n, 2.7, 0.08);  // four uniforms: 3 − 1.2 / 4
  EXPECT_NEAR(neighbours / n, 0.0, 0.01);
  EXPECT_NEAR(cross / n, 0.0, 0.01);
}

TEST(DummyWeights, NormsAreOneBiasesZeroCorrectionSmall) {
  const auto source = dummy_weights({DType::kBf16, 1});
  const std::vector<float> ones(5, 1.0f);
  for (const char* name : {"model.norm.weight", "model.layers.0.input_layernorm.weight",
                           "model.layers.0.self_attn.kv_a_layernorm.weight"}) {
    EXPECT_EQ(source->vector_f32(name, 5), ones) << name;
  }
  EXPECT_EQ(source->vector_f32("model.layers.0.self_attn.q_proj.bias", 5), std::vector<float>(5, 0.0f));
  float largest = 0;
  for (const float v : source->vector_f32("model.layers.1.mlp.gate.e_score_correction_bias", 64)) {
    largest = std::max(largest, std::fabs(v));
  }
  EXPECT_GT(largest, 0.0f);
  EXPECT_LT(largest, 0.04f);
  EXPECT_TRUE(source->has("anything"));
  expect_error(
      ErrorKind::kUnsupported,
      [] {
        dummy_weights({DType::kI8, 0});
      },
      "int8");
}

TEST(DummyWeights, KnownValuesStayTheSameForEver) {
  // From a second implementation of splitmix64: benchmarks and bug reports refer to seeds.
  const std::vector<float> v = dummy_weights({DType::kF32, 0})->vector_f32("model.embed_tokens.weight", 3);
  EXPECT_NEAR(v[0], 0.005033667, 1e-8);
  EXPECT_NEAR(v[1], 0.017304122, 1e-8);
  EXPECT_NEAR(v[2], -0.003625530, 1e-8);
}

}  // namespace
}  // namespace duet
