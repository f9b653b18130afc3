// Quantised weights in every family: W8A8 made at load time and from a written checkpoint, fp8 with block
// scales from a checkpoint that is made here.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "golden/harness.h"
#include "load/checkpoint.h"
#include "load/quant_config.h"
#include "load/quantize.h"
#include "load/safetensors.h"

namespace duet {
namespace {

namespace fs = std::filesystem;

RankOptions options_for(const std::string& model, int ranks, ExpertPath path) {
  RankOptions options = golden_options(model, ranks, path);
  options.max_micro_batches = 2;
  return options;
}

/// Removed with its contents.
class TempDir {
 public:
  explicit TempDir(const std::string& name)
      : path_(testing::TempDir() + "duet_" + name + "_" + std::to_string(getpid())) {
    fs::remove_all(path_);
  }
  ~TempDir() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// Median over all tokens of the relative error of a token's logits.
double median_error(const Logits& x, const Logits& y, int64_t vocab) {
  const std::vector<double> errors = token_errors(x, y, vocab);
  return errors[errors.size() / 2];
}

class QuantisedFamily : public testing::TestWithParam<const char*> {};

TEST_P(QuantisedFamily, W8A8AtLoadIsNearAndExactUnderOverlap) {
  const Golden golden = load_golden(GetParam());
  for (const int ranks : {1, 2, 4}) {
    for (const ExpertPath path : {ExpertPath::kAllReduce, ExpertPath::kAllToAll}) {
      SCOPED_TRACE(testing::Message() << ranks << " ranks, path " << static_cast<int>(path));
      RankOptions options = options_for(golden_dir(GetParam()), ranks, path);
      options.quantization = Quantization::kW8A8;
      const auto group = start_group(options);
      if (!group) continue;  // another rank checks, or the job has another size
      const Logits off = run_prompts(*group, golden.prompts, {});
      // What rounding weights and activations to 8 bits costs: about 0.04, as quant_golden_test.cc has it.
      EXPECT_LE(median_error(off, golden.logits, golden.vocab), 8e-2);
      Cut cut;
      cut.micro_batches = 2;
      cut.overlap = true;
      EXPECT_TRUE(same_bits(off, run_prompts(*group, golden.prompts, cut)));
      cut.chunk = 7;
      EXPECT_TRUE(same_bits(off, run_prompts(*group, golden.prompts, cut)));
    }
  }
}

TEST_P(QuantisedFamily, AWrittenCheckpointHasTheBitsOfLoading) {
  const Golden golden = load_golden(GetParam());
  const TempDir dir("w8a8");
  quantize_checkpoint(golden_dir(GetParam()), dir.path(), QuantScheme::kW8A8, {});
  RankOptions at_load = options_for(golden_dir(GetParam()), 1, ExpertPath::kAllReduce);
  at_load.quantization = Quantization::kW8A8;
  at_load.int8_head = false;  // as written
  const auto one = start_group(at_load);
  const auto other = start_group(options_for(dir.path(), 1, ExpertPath::kAllReduce));
  if (!one || !other) GTEST_SKIP() << "another rank checks, or the job has another size";
  EXPECT_TRUE(same_bits(run_prompts(*one, golden.prompts, {}), run_prompts(*other, golden.prompts, {})));
}

/// The checkpoint with every projection rounded to e4m3 times one scale, a power of two, per block of 128 ×
/// 128: stored as that, or multiplied out.
void write_rounded(const std::string& from, const std::string& to, bool as_fp8) {
  const Checkpoint checkpoint = Checkpoint::open(from);
  std::vector<SafetensorsTensor> tensors;
  std::vector<std::vector<uint8_t>> bytes;
  bytes.reserve(2 * checkpoint.tensors().size());
  for (const TensorInfo& info : checkpoint.tensors()) {
    if (!is_projection(info.name)) {
      tensors.push_back({{info.name, *info.dtype, info.shape}, info.data});
      continue;
    }
    const int64_t rows = info.shape[0], cols = info.shape[1];
    std::vector<float> w(static_cast<size_t>(rows * cols));
    convert_to_f32(info.data, *info.dtype, w.data(), w.size());
    const int64_t grid_rows = (rows + 127) / 128, grid_cols = (cols + 127) / 128;
    std::vector<float> scales(static_cast<size_t>(grid_rows * grid_cols), 0.0f);
    const auto scale_of = [&](int64_t i) -> float& {
      return scales[static_cast<size_t>(i / cols / 128 * grid_cols + i % cols / 128)];
    };
    for (int64_t i = 0; i < rows * cols; ++i)
      scale_of(i) = std::max(scale_of(i), std::abs(w[static_cast<size_t>(i)]));
    for (float& s : scales) s = std::exp2(std::ceil(std::log2(s / 448.0f)));
    for (int64_t i = 0; i < rows * cols; ++i) w[static_cast<size_t>(i)] /= scale_of(i);
    auto& packed = bytes.emplace_back(w.size());
    convert_from_f32(w.data(), DType::kF8E4M3, packed.data(), w.size());
    if (as_fp8) {
      tensors.push_back({{info.name, DType::kF8E4M3, info.shape}, packed.data()});
      auto& scale_bytes = bytes.emplace_back(scales.size() * sizeof(float));
      std::memcpy(scale_bytes.data(), scales.data(), scale_bytes.size());
      tensors.push_back(
          {{info.name + "_scale_inv", DType::kF32, {grid_rows, grid_cols}}, scale_bytes.data()});
      continue;
    }
    convert_to_f32(packed.data(), DType::kF8E4M3, w.data(), w.size());
    for (int64_t i = 0; i < rows * cols; ++i) w[static_cast<size_t>(i)] *= scale_of(i);
    auto& wide = bytes.emplace_back(w.size() * sizeof(float));
    std::memcpy(wide.data(), w.data(), wide.size());
    tensors.push_back({{info.name, DType::kF32, info.shape}, wide.data()});
  }
  fs::create_directories(to);
  write_safetensors(to + "/model.safetensors", tensors);
  nlohmann::json config = read_json(std::ifstream(from + "/config.json"));
  if (as_fp8)
    config["quantization_config"] = {{"quant_method", "fp8"},
                                     {"fmt", "e4m3"},
                                     {"activation_scheme", "dynamic"},
                                     {"weight_block_size", {128, 128}}};
  std::ofstream(to + "/config.json") << config;
}

TEST_P(QuantisedFamily, Fp8IsItsWeightsMultipliedOut) {
  const Golden golden = load_golden(GetParam());
  const TempDir fp8("fp8"), wide("fp8_wide");
  write_rounded(golden_dir(GetParam()), fp8.path(), true);
  write_rounded(golden_dir(GetParam()), wide.path(), false);
  for (const int ranks : {1, 2, 4}) {
    SCOPED_TRACE(testing::Message() << ranks << " ranks");
    const auto group = start_group(options_for(fp8.path(), ranks, ExpertPath::kAllReduce));
    const auto plain = start_group(options_for(wide.path(), ranks, ExpertPath::kAllReduce));
    if (!group || !plain) continue;  // another rank checks, or the job has another size
    const Logits logits = run_prompts(*group, golden.prompts, {});
    const Logits expected = run_prompts(*plain, golden.prompts, {});
    EXPECT_LE(median_error(logits, expected, golden.vocab), 2e-5);
    EXPECT_GE(median_error(logits, golden.logits, golden.vocab), 1e-3) << "nothing was quantised";
    Cut cut;
    cut.micro_batches = 2;
    cut.overlap = true;
    EXPECT_TRUE(same_bits(logits, run_prompts(*group, golden.prompts, cut)));
  }
}

INSTANTIATE_TEST_SUITE_P(Families, QuantisedFamily, testing::ValuesIn(kFamilies), [](const auto& family) {
  std::string name = family.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace duet
