#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "load/weights.h"

namespace duet {

namespace {

constexpr float kWeightStd = 0.02f;  // initializer_range of every published config
// Enough to reorder close experts, far from the spread of the scores: no expert starves.
constexpr float kCorrectionStd = 0.01f;

// splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014) read as
// a counter: element i is the i-th output of the stream that starts at `key`.
constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;

inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t stream_key(uint64_t seed, std::string_view name) {
  Fnv1a hash;
  hash.bytes(name);
  return mix(hash.value() ^ mix(seed + kGolden));
}

// The sum of four uniform 16-bit numbers: mean 131070, standard deviation 65536 / sqrt(3), normal
// to the eye up to ±3.46 σ. Small integers times one float: the same bits on every machine.
inline float normal_at(uint64_t key, uint64_t index, float scale) {
  const uint64_t h = mix(key + (index + 1) * kGolden);
  const uint64_t pairs = (h & 0x0000ffff0000ffffu) + ((h >> 16) & 0x0000ffff0000ffffu);
  const auto sum = static_cast<int32_t>((pairs & 0xffffffffu) + (pairs >> 32));
  return static_cast<float>(sum - 131070) * scale;
}

// What one tensor is made of.
struct Stream {
  uint64_t key = 0;
  float scale = 0.0f;  // 0: a constant
  float constant = 0.0f;

  void fill(uint64_t first, float* out, size_t count) const {
    if (scale == 0.0f) {
      std::fill_n(out, count, constant);
      return;
    }
    for (size_t i = 0; i < count; ++i) out[i] = normal_at(key, first + i, scale);
  }
};

Stream stream_of(uint64_t seed, std::string_view name) {
  constexpr float kUnit = 1.0f / 37837.227f;  // sqrt(3) / 65536
  Stream stream;
  stream.key = stream_key(seed, name);
  if (name.ends_with("norm.weight")) {
    stream.constant = 1.0f;
  } else if (name.ends_with("e_score_correction_bias")) {
    stream.scale = kCorrectionStd * kUnit;
  } else if (!name.ends_with(".bias")) {
    stream.scale = kWeightStd * kUnit;
  }
  return stream;
}

// Generates `count` elements from `first` on, in pieces that stay in the L1 cache.
template <typename Consume>
void generate(const Stream& stream, uint64_t first, size_t count, const Consume& consume) {
  std::array<float, 1024> piece;
  for (size_t done = 0; done < count; done += piece.size()) {
    const size_t n = std::min(piece.size(), count - done);
    stream.fill(first + done, piece.data(), n);
    consume(piece.data(), done, n);
  }
}

// Values as a checkpoint of `dtype` would hold them, widened.
void fill_rounded(const Stream& stream, DType dtype, uint64_t first, float* out, size_t count) {
  if (dtype == DType::kF32) {
    stream.fill(first, out, count);
    return;
  }
  std::array<uint16_t, 1024> stored;
  generate(stream, first, count, [&](const float* piece, size_t done, size_t n) {
    convert_from_f32(piece, dtype, stored.data(), n);
    convert_to_f32(stored.data(), dtype, out + done, n);
  });
}

class DummyTable final : public EmbeddingTable {
 public:
  DummyTable(const Stream& stream, DType dtype, int64_t rows, int64_t cols)
      : EmbeddingTable(rows, cols), stream_(stream), dtype_(dtype) {}

 private:
  void read_row(int64_t row, float* out) const override {
    fill_rounded(stream_, dtype_, static_cast<uint64_t>(row * cols()), out, static_cast<size_t>(cols()));
  }

  Stream stream_;
  DType dtype_;
};

class DummyWeights final : public WeightSource {
 public:
  explicit DummyWeights(const DummyOptions& options) : options_(options) {
    const DType d = options.dtype;
    if (d != DType::kF32 && d != DType::kBf16 && d != DType::kF16) {
      throw Error(
          ErrorKind::kUnsupported,
          fmt::format("dummy weights in {}: supported are float32, bfloat16 and float16", to_string(d)));
    }
  }

  bool has(const std::string&) const override { return true; }

  LoadedMatrix matrix(const std::string& name, int64_t rows, int64_t cols, Slice row_slice,
                      Slice col_slice) const override {
    DUET_CHECK(0 <= row_slice.begin && row_slice.begin <= row_slice.end && row_slice.end <= rows);
    DUET_CHECK(0 <= col_slice.begin && col_slice.begin <= col_slice.end && col_slice.end <= cols);
    const DType dtype = options_.dtype;
    const Stream stream = stream_of(options_.seed, name);
    const auto width = static_cast<size_t>(col_slice.size());
    const size_t row_bytes = width * dtype_bytes(dtype);
    LoadedMatrix result;
    result.owned = AlignedBuffer(static_cast<size_t>(row_slice.size()) * row_bytes);
    std::byte* out = result.owned.data();
    for (int64_t r = row_slice.begin; r < row_slice.end; ++r, out += row_bytes) {
      const auto first = static_cast<uint64_t>(r * cols + col_slice.begin);
      if (dtype == DType::kF32) {
        stream.fill(first, reinterpret_cast<float*>(out), width);
      } else {
        generate(stream, first, width, [&](const float* piece, size_t done, size_t n) {
          convert_from_f32(piece, dtype, out + done * dtype_bytes(dtype), n);
        });
      }
    }
    result.view = {result.owned.data(), dtype, row_slice.size(), col_slice.size(), col_slice.size(), 1, {}};
    return quantised(name) ? quantise(std::move(result), col_slice) : std::move(result);
  }

  std::vector<float> vector_f32(const std::string& name, int64_t length, Slice slice) const override {
    DUET_CHECK(0 <= slice.begin && slice.begin <= slice.end && slice.end <= length);
    std::vector<float> values(static_cast<size_t>(slice.size()));
    fill_rounded(stream_of(options_.seed, name), options_.dtype, static_cast<uint64_t>(slice.begin),
                 values.data(), values.size());
    return values;
  }

  std::unique_ptr<EmbeddingTable> embedding(const std::string& name, int64_t rows,
                                            int64_t cols) const override {
    return std::make_unique<DummyTable>(stream_of(options_.seed, name), options_.dtype, rows, cols);
  }

  std::vector<std::string> names() const override { return {}; }

 private:
  bool quantised(const std::string& name) const {
    const size_t dot = name.rfind('.');
    return is_projection(name) && options_.quant.quantised(name.substr(0, dot));
  }

  /// As the config says, with one power of two for a scale that the largest values (0.0693) just fit.
  LoadedMatrix quantise(LoadedMatrix from, Slice col_slice) const {
    const bool fp8 = options_.quant.format == WeightFormat::kFp8Block;
    const float factor = fp8 ? 0x1p12f : 0x1p10f;
    const size_t count = static_cast<size_t>(from.view.rows * from.view.cols);
    LoadedMatrix m;
    m.owned = AlignedBuffer(count);
    std::array<float, 1024> piece;
    const size_t size = dtype_bytes(from.view.dtype);
    for (size_t done = 0; done < count; done += piece.size()) {
      const size_t n = std::min(piece.size(), count - done);
      convert_to_f32(from.owned.data() + done * size, from.view.dtype, piece.data(), n);
      for (size_t i = 0; i < n; ++i) {
        const float v = piece[i] * factor;
        m.owned.data()[done + i] = static_cast<std::byte>(
            fp8 ? f32_to_f8e4m3(v) : static_cast<uint8_t>(static_cast<int8_t>(std::nearbyint(v))));
      }
    }
    const int64_t blocks =
        fp8 ? (col_slice.end + options_.quant.block_cols - 1) / options_.quant.block_cols : 1;
    m.scales.assign(static_cast<size_t>(blocks), 1.0f / factor);
    m.view = from.view;
    m.view.data = m.owned.data();
    m.view.dtype = fp8 ? DType::kF8E4M3 : DType::kI8;
    // Blocks along k lie where a checkpoint's would.
    const int64_t block = options_.quant.block_cols;
    m.view.scales = {m.scales.data(), 1, fp8 ? block : 1, 0, fp8 ? col_slice.begin % block : 0, 0,
                     fp8 ? 1 : 0};
    return m;
  }

  DummyOptions options_;
};

}  // namespace

std::unique_ptr<WeightSource> dummy_weights(const DummyOptions& options) {
  return std::make_unique<DummyWeights>(options);
}

}  // namespace duet
