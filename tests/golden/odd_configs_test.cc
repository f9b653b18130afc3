// Configurations that no golden covers, against an oracle that the goldens cover: every rank count that
// divides, both expert paths, every kind of cut.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "golden/harness.h"
#include "golden/oracle.h"
#include "golden/random_weights.h"
#include "load/checkpoint.h"

namespace duet {
namespace {

using Json = nlohmann::json;
using Prompts = std::vector<std::vector<int32_t>>;

// ---- the oracle itself --------------------------------------------------------------------------

class OracleItself : public testing::TestWithParam<const char*> {};

TEST_P(OracleItself, AgreesWithHuggingFace) {
  const Golden golden = load_golden(GetParam());
  const auto source =
      checkpoint_weights(std::make_shared<Checkpoint>(Checkpoint::open(golden_dir(GetParam()))));
  std::ifstream file(golden_dir(GetParam()) + "/config.json");
  Oracle oracle({std::istreambuf_iterator<char>(file), {}}, *source);
  for (size_t i = 0; i < golden.prompts.size(); ++i)
    EXPECT_LE(relative_error(oracle.logits(golden.prompts[i]), golden.logits[i]), 1e-6) << "prompt " << i;
}

class Int8Cache : public testing::TestWithParam<std::tuple<const char*, int, ExpertPath>> {};

TEST_P(Int8Cache, LosesWhatItsIntegersLoseAndNoMore) {
  const auto [name, ranks, path] = GetParam();
  const Golden golden = load_golden(name);
  const auto source = checkpoint_weights(std::make_shared<Checkpoint>(Checkpoint::open(golden_dir(name))));
  std::ifstream file(golden_dir(name) + "/config.json");
  Oracle oracle({std::istreambuf_iterator<char>(file), {}}, *source);
  oracle.keep_cache_in_8_bits();
  Logits want;
  for (const auto& prompt : golden.prompts) want.push_back(oracle.logits(prompt));
  EXPECT_GT(token_errors(want, golden.logits, golden.vocab).back(), 1e-3) << "8 bits, or nothing is tested";

  RankOptions options = golden_options(golden_dir(name), ranks, path);
  options.kv_cache = KvCacheDtype::kInt8;
  const auto group = start_group(options);
  if (!group) GTEST_SKIP() << "another rank checks, or the job has another size";
  for (const bool decode : {false, true}) {
    Cut cut;
    cut.decode = decode;
    const Logits off = run_prompts(*group, golden.prompts, cut);
    // By token: a value in the middle between two integers falls to either side, and those that see it
    // move with it. Generated tokens have queries and probabilities of 16 bits, 13 for the rotated part:
    // what those move by 1e-4 turns one in a hundred of the next layer's integers.
    const auto errors = token_errors(off, want, golden.vocab);
    EXPECT_LE(errors[errors.size() / 2], decode ? 5e-3 : 1e-4);
    cut.micro_batches = 3;
    cut.overlap = true;
    EXPECT_TRUE(same_bits(off, run_prompts(*group, golden.prompts, cut))) << "decode " << decode;
  }
}

INSTANTIATE_TEST_SUITE_P(Latent, Int8Cache,
                         testing::Values(std::tuple{"v3-tiny", 1, ExpertPath::kAllReduce},
                                         std::tuple{"v2-tiny", 2, ExpertPath::kAllReduce},
                                         std::tuple{"v2lite-tiny", 2, ExpertPath::kAllToAll},
                                         std::tuple{"v3-tiny", 4, ExpertPath::kAllToAll}));

std::string underscored(std::string name) {
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Goldens, OracleItself, testing::ValuesIn(kFamilies),
                         [](const auto& checkpoint) { return underscored(checkpoint.param); });

// ---- odd configurations -------------------------------------------------------------------------

constexpr uint64_t kSeed = 10;

struct OddConfig {
  const char* name;
  std::vector<int> ranks;
  const char* patch;  // JSON merge patch of kBase, or of kGroupedBase
  bool grouped = false;
  uint64_t seed = kSeed;
};

void PrintTo(const OddConfig& config, std::ostream* out) {
  *out << config.name;
}

// No width is a multiple of 16 or of another's; contexts far above YaRN's original one are reached.
constexpr const char* kBase = R"({
  "architectures": ["DeepseekV3ForCausalLM"], "torch_dtype": "float32",
  "vocab_size": 97, "hidden_size": 50, "num_hidden_layers": 3, "max_position_embeddings": 512,
  "num_attention_heads": 3, "q_lora_rank": null, "kv_lora_rank": 36, "qk_nope_head_dim": 40,
  "qk_rope_head_dim": 10, "v_head_dim": 24, "intermediate_size": 53, "moe_intermediate_size": 22,
  "n_routed_experts": 12, "n_shared_experts": 1, "num_experts_per_tok": 3, "n_group": 3, "topk_group": 2,
  "first_k_dense_replace": 1, "rope_theta": 1000, "rope_scaling": null})";

const OddConfig kOdd[] = {
    {"v3_q_lora_yarn_mscale_differs", {1, 3}, R"({"q_lora_rank": 20, "rope_scaling": {"type": "yarn",
      "factor": 8, "original_max_position_embeddings": 32, "beta_fast": 1.2, "beta_slow": 0.25,
      "mscale": 0.8, "mscale_all_dim": 0.5}})"},
    {"v3_no_shared_sparse_layers", {1, 3}, R"({"n_shared_experts": 0, "first_k_dense_replace": 0,
      "moe_layer_freq": 2, "vocab_size": 131, "tie_word_embeddings": true, "rms_norm_eps": 1e-4})"},
    {"v3_top_1_twelve_heads_bf16", {1, 2, 3, 4, 6}, R"({"torch_dtype": "bfloat16", "num_experts_per_tok": 1,
      "num_attention_heads": 12, "n_group": 1, "topk_group": 1, "qk_nope_head_dim": 9, "v_head_dim": 7})"},
    {"v3_all_of_the_chosen_groups", {1, 3}, R"({"num_experts_per_tok": 8, "n_shared_experts": 3,
      "routed_scaling_factor": 1.5, "norm_topk_prob": false, "rope_scaling": {"rope_type": "yarn",
      "factor": 4, "original_max_position_embeddings": 20, "mscale_all_dim": 1.0, "beta_slow": 0.3, "truncate": false}})"},
    {"v2_groups_yarn_attention_factor", {1, 2, 3, 6}, R"({"architectures": ["DeepseekV2ForCausalLM"],
      "vocab_size": 131, "num_attention_heads": 6, "topk_method": "group_limited_greedy",
      "routed_scaling_factor": 4.0, "n_shared_experts": null, "first_k_dense_replace": 0,
      "num_hidden_layers": 4, "moe_layer_freq": 2, "rope_theta": null, "rope_parameters":
      {"rope_type": "yarn", "rope_theta": 500.0, "factor": 16, "original_max_position_embeddings": 24,
      "attention_factor": 1.3}})"},
    {"v2_greedy_normalised_f16", {1, 2, 4}, R"({"architectures": ["DeepseekV2ForCausalLM"],
      "dtype": "float16", "torch_dtype": null, "num_attention_heads": 4, "topk_method": "greedy",
      "norm_topk_prob": true, "routed_scaling_factor": 2.0, "num_hidden_layers": 4, "moe_layer_freq": 3,
      "n_shared_experts": 2, "q_lora_rank": 20, "rope_scaling": {"type": "yarn", "factor": 4, "mscale": 0.7}})"},
    {"v2_top_1_of_one_group", {1, 3}, R"({"architectures": ["DeepseekV2ForCausalLM"],
      "topk_method": "group_limited_greedy", "topk_group": 1, "num_experts_per_tok": 1,
      "routed_scaling_factor": 3.0, "rope_parameters": {"rope_theta": 300.0, "rope_type": "default"}})"},
    {"v2_without_experts", {1, 2, 4}, R"({"architectures": ["DeepseekV2ForCausalLM"],
      "num_attention_heads": 4, "n_routed_experts": null, "n_shared_experts": null,
      "moe_intermediate_size": null, "num_experts_per_tok": null, "n_group": null, "topk_group": null,
      "intermediate_size": 37, "q_lora_rank": 20, "tie_word_embeddings": true})"},
    {"v3_dense_before_the_first_moe_layer", {1, 3}, R"({"first_k_dense_replace": 3})"},
    {"v3_as_small_as_it_gets", {1, 2}, R"({"vocab_size": 5, "hidden_size": 4, "num_hidden_layers": 2,
      "num_attention_heads": 2, "kv_lora_rank": 2, "qk_nope_head_dim": 1, "qk_rope_head_dim": 2,
      "v_head_dim": 1, "intermediate_size": 2, "moe_intermediate_size": 3, "n_routed_experts": 2,
      "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1})"},
};

// Grouped-query attention: heads of 14 in groups of 3 where hidden / heads is no integer.
constexpr const char* kGroupedBase = R"({
  "architectures": ["LlamaForCausalLM"], "torch_dtype": "float32",
  "vocab_size": 97, "hidden_size": 50, "num_hidden_layers": 3, "max_position_embeddings": 512,
  "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 14, "intermediate_size": 53,
  "rope_theta": 1000, "rope_scaling": null})";

const OddConfig kOddGrouped[] = {
    {"llama_biases_everywhere_linear",
     {1, 2, 6},
     R"({"attention_bias": true,
      "rope_scaling": {"type": "linear", "factor": 3.0}})",
     true},
    {"llama_one_kv_head_llama3",
     {1, 2, 3, 6},
     R"({"num_key_value_heads": 1, "rms_norm_eps": 1e-4,
      "tie_word_embeddings": true, "rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1,
      "high_freq_factor": 4, "original_max_position_embeddings": 24}})",
     true},
    {"llama_a_kv_head_for_each_bf16",
     {1, 2, 3, 4, 6, 12},
     R"({"torch_dtype": "bfloat16", "head_dim": 6,
      "num_attention_heads": 12, "num_key_value_heads": 12})",
     true},
    {"qwen2_yarn_four_copies",
     {1, 2, 4, 8},
     R"({"architectures": ["Qwen2ForCausalLM"], "num_attention_heads": 8,
      "head_dim": null, "hidden_size": 48, "rope_scaling": {"type": "yarn", "factor": 8,
      "original_max_position_embeddings": 32, "beta_fast": 1.2, "beta_slow": 0.25}})",
     true},
    {"qwen3_biased_f16",
     {1, 2, 6},
     R"({"architectures": ["Qwen3ForCausalLM"], "torch_dtype": "float16",
      "attention_bias": true, "rope_scaling": {"rope_type": "yarn", "factor": 4,
      "original_max_position_embeddings": 20, "attention_factor": 1.2}})",
     true},
    {"qwen3_moe_some_layers_unnormalised",
     {1, 2, 6},
     R"({"architectures": ["Qwen3MoeForCausalLM"],
      "num_hidden_layers": 5, "num_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 22,
      "norm_topk_prob": false, "decoder_sparse_step": 2, "mlp_only_layers": [3]})",
     true,
     12},
    {"qwen3_moe_top_1_normalised",
     {1, 2},
     R"({"architectures": ["Qwen3MoeForCausalLM"],
      "num_experts": 8, "num_experts_per_tok": 1, "moe_intermediate_size": 19, "norm_topk_prob": true,
      "num_attention_heads": 4})",
     true,
     12},
    {"mistral_three_kv_heads_linear",
     {1, 3, 6},
     R"({"architectures": ["MistralForCausalLM"], "num_key_value_heads": 3, "sliding_window": 512,
      "attention_bias": null, "rope_scaling": {"type": "linear", "factor": 2.0}})",
     true},
    {"mixtral_top_1_of_six_f16",
     {1, 2, 6},
     R"({"architectures": ["MixtralForCausalLM"], "torch_dtype": "float16", "num_local_experts": 6,
      "num_experts_per_tok": 1, "sliding_window": null})",
     true,
     12},
    {"mixtral_top_3_yarn",
     {1, 2},
     R"({"architectures": ["MixtralForCausalLM"], "num_local_experts": 8, "num_experts_per_tok": 3,
      "tie_word_embeddings": true, "rope_scaling": {"type": "yarn", "factor": 8,
      "original_max_position_embeddings": 32, "beta_fast": 1.2, "beta_slow": 0.25}})",
     true,
     12},
};

std::string config_of(const OddConfig& odd) {
  Json config = read_json(odd.grouped ? kGroupedBase : kBase);
  config.merge_patch(read_json(odd.patch));  // a null removes the field
  return json_text(config);
}

DType dtype_of(const std::string& config_json) {
  const Json config = read_json(config_json);
  const std::string name = config.value("dtype", config.value("torch_dtype", "float32"));
  return name == "bfloat16" ? DType::kBf16 : name == "float16" ? DType::kF16 : DType::kF32;
}

// A directory with a config.json, removed with its contents.
class ModelDir {
 public:
  explicit ModelDir(const std::string& config_json)
      : path_(std::filesystem::temp_directory_path() /
              ("duet_odd_" + std::to_string(::getpid()) + "_" + std::to_string(count_++))) {
    std::filesystem::create_directories(path_);
    std::ofstream(path_ / "config.json") << config_json;
  }
  ~ModelDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ModelDir(const ModelDir&) = delete;
  ModelDir& operator=(const ModelDir&) = delete;
  std::string path() const { return path_.string(); }

 private:
  static inline int count_ = 0;
  std::filesystem::path path_;
};

RankOptions options_for(const ModelDir& dir, int ranks, ExpertPath path) {
  RankOptions options = golden_options(dir.path(), ranks, path);
  options.max_batched_tokens = options.max_logits_rows = 64;
  options.kv_cache_bytes = int64_t{1} << 20;
  return options;
}

Prompts prompts_for(int64_t vocab) {
  return {random_tokens(29, vocab, 1), random_tokens(9, vocab, 2), random_tokens(1, vocab, 3),
          random_tokens(2, vocab, 4)};
}

struct Run {
  Cut cut;
  size_t tokens = 1000;  // of each prompt, at most
};

std::vector<Run> runs() {
  std::vector<Run> list;
  for (const int micro_batches : {1, 2, 3}) {
    for (const int64_t chunk : {0, 7}) {
      Run run;
      run.cut.chunk = chunk;
      run.cut.micro_batches = micro_batches;
      run.cut.overlap = micro_batches > 1;
      list.push_back(run);
    }
  }
  Run decode;
  decode.cut.decode = true;
  list.push_back(decode);
  decode.cut.micro_batches = 2;
  decode.cut.overlap = true;
  decode.tokens = 9;  // then only one prompt is left, and a single row does not split
  list.push_back(decode);
  return list;
}

// Float32 rounding over a few layers leaves at most 1e-6 here (8e-7 in most configurations).
constexpr double kTolerance = 5e-6;
// Scores are at most 1 and carry errors of about 1e-6: a choice with this margin can't flip. A seed is one
// that gives its configuration more.
constexpr double kGateMargin = 1e-4;

Logits ask(Oracle& oracle, const Prompts& prompts) {
  Logits logits;
  for (const std::vector<int32_t>& prompt : prompts) logits.push_back(oracle.logits(prompt));
  return logits;
}

void expect_agreement(const RankOptions& options, const Prompts& prompts, const Logits& expected) {
  SCOPED_TRACE(testing::Message() << options.ranks << " ranks, "
                                  << (options.expert_path == ExpertPath::kAllToAll ? "all-to-all"
                                      : options.expert_parallel                    ? "expert parallel"
                                                                                   : "all-reduce"));
  const auto group = start_group(options);
  if (!group) return;  // another rank checks, or the job has another size
  const int64_t vocab = group->info().config.vocab_size;
  for (const auto& [cut, tokens] : runs()) {
    Prompts shortened = prompts;
    for (std::vector<int32_t>& prompt : shortened) prompt.resize(std::min(prompt.size(), tokens));
    const Logits logits = run_prompts(*group, shortened, cut);
    for (size_t i = 0; i < prompts.size(); ++i) {
      const auto first = expected[i].begin();  // tokens that come later change nothing
      const std::vector<float> reference(first, first + static_cast<int64_t>(shortened[i].size()) * vocab);
      EXPECT_LE(relative_error(logits[i], reference), kTolerance)
          << "prompt " << i << ", chunk " << cut.chunk << " decode " << cut.decode << " micro-batches "
          << cut.micro_batches;
    }
  }
}

class OddConfigs : public testing::TestWithParam<OddConfig> {};

TEST_P(OddConfigs, RandomCheckpointMatchesTheOracle) {
  const std::string config = config_of(GetParam());
  const ModelDir dir(config);
  const RandomWeights weights(dtype_of(config), GetParam().seed);
  Oracle oracle(config, weights);
  weights.write(dir.path() + "/model.safetensors");
  const Prompts prompts = prompts_for(oracle.config().vocab);
  const Logits expected = ask(oracle, prompts);
  ASSERT_GE(oracle.gate_margin(), kGateMargin) << "choose another kSeed";
  for (const int ranks : GetParam().ranks) {
    RankOptions options = options_for(dir, ranks, ExpertPath::kAllReduce);
    expect_agreement(options, prompts, expected);
    if (ranks > 1) {
      options.expert_parallel = true;
      expect_agreement(options, prompts, expected);
      options.expert_parallel = false;
    }
    options.expert_path = ExpertPath::kAllToAll;
    expect_agreement(options, prompts, expected);
  }
}

// bfloat16 and half round weights, KV and the inputs of products: single tokens may choose another
// expert, so the median token counts.
TEST_P(OddConfigs, LowerPrecisionStaysNear) {
  const std::string config = config_of(GetParam());
  const ModelDir dir(config);
  const RandomWeights weights(dtype_of(config), GetParam().seed);
  Oracle oracle(config, weights);
  weights.write(dir.path() + "/model.safetensors");
  const int64_t vocab = oracle.config().vocab;
  const Prompts prompts = prompts_for(vocab);
  const Logits expected = ask(oracle, prompts);
  for (const ComputeDtype dtype : {ComputeDtype::kBfloat16, ComputeDtype::kHalf}) {
    RankOptions options = options_for(dir, GetParam().ranks.back(), ExpertPath::kAllToAll);
    options.dtype = dtype;
    options.wire = DType::kBf16;
    const auto group = start_group(options);
    if (!group) continue;  // another rank checks, or the job has another size
    const Logits logits = run_prompts(*group, prompts, {});
    const std::vector<double> errors = token_errors(logits, expected, vocab);
    const double median = errors[errors.size() / 2];
    EXPECT_LE(median, 3e-2) << to_string(dtype);
    EXPECT_GE(median, 1e-5) << to_string(dtype) << " rounds nothing";
  }
}

INSTANTIATE_TEST_SUITE_P(Odd, OddConfigs, testing::ValuesIn(kOdd),
                         [](const auto& odd) { return std::string(odd.param.name); });

INSTANTIATE_TEST_SUITE_P(OddGrouped, OddConfigs, testing::ValuesIn(kOddGrouped),
                         [](const auto& odd) { return std::string(odd.param.name); });

// ---- weights without a file, layers beyond the model --------------------------------------------

TEST(OddModels, DummyWeightsMatchTheOracleOnEveryRankCount) {
  // Dummy weights are small: a width of 260 keeps logits and gate scores apart.
  const OddConfig odd{"", {}, R"({"hidden_size": 260, "num_attention_heads": 6, "torch_dtype": "bfloat16"})"};
  const std::string config = config_of(odd);
  const ModelDir dir(config);
  const auto weights = dummy_weights({DType::kBf16, kSeed});
  Oracle oracle(config, *weights);
  const Prompts prompts = prompts_for(oracle.config().vocab);
  const Logits expected = ask(oracle, prompts);
  ASSERT_GE(oracle.gate_margin(), kGateMargin) << "choose another kSeed";
  for (const int ranks : {1, 2, 3, 6}) {
    RankOptions options =
        options_for(dir, ranks, ranks == 2 ? ExpertPath::kAllToAll : ExpertPath::kAllReduce);
    options.load_format = LoadFormat::kDummy;
    options.dummy_seed = kSeed;
    expect_agreement(options, prompts, expected);
  }
}

TEST(OddModels, MultiTokenPredictionLayersAreSkipped) {
  Json config = read_json(config_of(kOdd[0]));
  const ModelDir plain(json_text(config));
  const RandomWeights weights(DType::kF32, kSeed);
  Oracle oracle(json_text(config), weights);
  weights.write(plain.path() + "/model.safetensors");
  config["num_nextn_predict_layers"] = 1;
  const ModelDir with_mtp(json_text(config));
  const int64_t hidden = oracle.config().hidden, vocab = oracle.config().vocab;
  for (const char* name :
       {"input_layernorm.weight", "enorm.weight", "hnorm.weight", "shared_head.norm.weight"})
    weights.vector_f32(std::string("model.layers.3.") + name, hidden);
  weights.matrix("model.layers.3.eh_proj.weight", hidden, 2 * hidden);
  weights.matrix("model.layers.3.embed_tokens.weight", vocab, hidden);
  weights.matrix("model.layers.3.shared_head.head.weight", vocab, hidden);
  weights.matrix("model.layers.3.self_attn.o_proj.weight", hidden, 3 * 24);
  weights.matrix("model.layers.3.mlp.experts.0.gate_proj.weight", 22, hidden);
  weights.write(with_mtp.path() + "/model.safetensors");
  const Prompts prompts = prompts_for(vocab);
  Logits results[2];
  for (const ModelDir* dir : {&plain, &with_mtp}) {
    const auto group = start_group(options_for(*dir, 1, ExpertPath::kAllReduce));
    if (!group) continue;  // another rank checks, or the job has another size
    EXPECT_EQ(group->info().config.num_hidden_layers, 3);
    results[dir == &with_mtp] = run_prompts(*group, prompts, {});
  }
  if (results[0].empty()) return;
  EXPECT_EQ(results[0], results[1]);
  EXPECT_LE(relative_error(results[1][0], oracle.logits(prompts[0])), kTolerance);
}

}  // namespace
}  // namespace duet
