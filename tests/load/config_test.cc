#include "base/json_text.h"
#include "config_helpers.h"

namespace duet {
namespace {
using nlohmann::json;

json v3_json() {
  std::ifstream in(std::string(DUET_FIXTURES) + "/golden/v3-tiny/config.json");
  return read_json(std::move(in));
}

// The V3 fixture with one field replaced (or removed, for a discarded value).
json with(const char* field, const json& value) {
  json j = v3_json();
  j[field] = value;
  return j;
}
json without(const char* field) {
  json j = v3_json();
  j.erase(field);
  return j;
}

TEST(Config, ReadsTheV3Fixture) {
  const ModelConfig c = load_config(std::string(DUET_FIXTURES) + "/golden/v3-tiny");
  EXPECT_EQ(c.architecture, Architecture::kDeepseekV3);
  EXPECT_EQ(c.dtype, DType::kF32);
  EXPECT_EQ(c.hidden_size, 64);
  EXPECT_EQ(c.intermediate_size, 96);
  EXPECT_EQ(c.moe_intermediate_size, 32);
  EXPECT_EQ(c.num_hidden_layers, 3);
  EXPECT_EQ(c.num_attention_heads, 8);
  EXPECT_EQ(c.q_lora_rank, 24);
  EXPECT_EQ(c.kv_lora_rank, 32);
  EXPECT_EQ(c.qk_head_dim(), 24);
  EXPECT_EQ(c.v_head_dim, 16);
  EXPECT_EQ(c.vocab_size, 256);
  EXPECT_EQ(c.max_position_embeddings, 4096);
  EXPECT_EQ(c.n_routed_experts, 16);
  EXPECT_EQ(c.n_shared_experts, 1);
  EXPECT_EQ(c.num_experts_per_tok, 4);
  EXPECT_EQ(c.n_group, 4);
  EXPECT_EQ(c.topk_group, 2);
  EXPECT_EQ(c.topk_method, TopkMethod::kNoauxTc);
  EXPECT_EQ(c.scoring_func, ScoringFunc::kSigmoid);
  EXPECT_TRUE(c.norm_topk_prob);
  EXPECT_EQ(c.routed_scaling_factor, 2.5);
  EXPECT_EQ(c.rms_norm_eps, 1e-6);
  EXPECT_FALSE(c.tie_word_embeddings);
  EXPECT_EQ(c.rope.type, RopeType::kYarn);
  EXPECT_EQ(c.rope.theta, 10000);
  EXPECT_EQ(c.rope.factor, 40);
  EXPECT_EQ(c.rope.mscale, 1);
  EXPECT_EQ(c.rope.mscale_all_dim, 1);
  EXPECT_EQ(c.rope.original_max_position_embeddings, 64);
  EXPECT_EQ(c.bos_token_id, 0);
  EXPECT_EQ(c.eos_token_ids, std::vector<int32_t>{1});
  EXPECT_FALSE(c.is_moe_layer(0));
  EXPECT_TRUE(c.is_moe_layer(1));
  EXPECT_EQ(c.num_moe_layers(), 2);
}

TEST(Config, ReadsEveryOtherFixtureAndModel) {
  const std::string golden = std::string(DUET_FIXTURES) + "/golden/";
  EXPECT_EQ(load_config(golden + "v3-tiny-bf16").dtype, DType::kBf16);
  const ModelConfig v2 = load_config(golden + "v2-tiny");
  EXPECT_EQ(v2.architecture, Architecture::kDeepseekV2);
  EXPECT_EQ(v2.topk_method, TopkMethod::kGroupLimitedGreedy);
  EXPECT_EQ(v2.rope.mscale, 0.707);
  const ModelConfig lite = load_config(golden + "v2lite-tiny");
  EXPECT_EQ(lite.q_lora_rank, 0);
  EXPECT_EQ(lite.topk_method, TopkMethod::kGreedy);
  const ModelConfig kjv = load_config(std::string(DUET_MODELS) + "/kjv-8m");
  EXPECT_EQ(kjv.rope.type, RopeType::kDefault);
  EXPECT_EQ(kjv.vocab_size, 4096);
  for (const auto& entry : std::filesystem::directory_iterator(std::string(DUET_MODELS) + "/configs")) {
    if (entry.path().extension() != ".json") continue;
    std::ifstream in(entry.path());
    const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    EXPECT_GT(parse_config(text, entry.path().string()).hidden_size, 0);
  }
}

TEST(Config, AbsentFieldsHaveHuggingFacesDefaults) {
  json v3 = v3_json();
  for (const char* field :
       {"norm_topk_prob", "routed_scaling_factor", "first_k_dense_replace", "topk_method", "scoring_func",
        "rope_theta", "rope_scaling", "torch_dtype", "rms_norm_eps", "hidden_act", "max_position_embeddings",
        "moe_layer_freq", "num_key_value_heads", "q_lora_rank", "attention_bias", "bos_token_id",
        "eos_token_id", "tie_word_embeddings"}) {
    v3.erase(field);
  }
  const ModelConfig c = parse(v3);
  EXPECT_TRUE(c.norm_topk_prob);
  EXPECT_EQ(c.routed_scaling_factor, 2.5);
  EXPECT_EQ(c.first_k_dense_replace, 3);
  EXPECT_EQ(c.topk_method, TopkMethod::kNoauxTc);
  EXPECT_EQ(c.scoring_func, ScoringFunc::kSigmoid);
  EXPECT_EQ(c.rope.type, RopeType::kDefault);
  EXPECT_EQ(c.rope.theta, 10000);
  EXPECT_EQ(c.dtype, DType::kF32);
  EXPECT_EQ(c.q_lora_rank, 1536);
  EXPECT_FALSE(c.bos_token_id.has_value());
  EXPECT_TRUE(c.eos_token_ids.empty());

  v3["architectures"] = {"DeepseekV2ForCausalLM"};
  const ModelConfig v2 = parse(v3);
  EXPECT_FALSE(v2.norm_topk_prob);
  EXPECT_EQ(v2.routed_scaling_factor, 1.0);
  EXPECT_EQ(v2.first_k_dense_replace, 0);
  EXPECT_EQ(v2.topk_method, TopkMethod::kGreedy);
  EXPECT_EQ(v2.scoring_func, ScoringFunc::kSoftmax);
  EXPECT_EQ(v2.n_group, 1) << "greedy looks at no groups";

  json by_type = without("architectures");
  EXPECT_EQ(parse(by_type).architecture, Architecture::kDeepseekV3);
}

TEST(Config, ExpertsMayBeAbsent) {
  for (const json& j :
       {without("n_routed_experts"), with("n_routed_experts", nullptr), with("n_routed_experts", 0)}) {
    json dense = j;
    dense.erase("num_experts_per_tok");
    dense.erase("moe_intermediate_size");
    const ModelConfig c = parse(dense);
    EXPECT_EQ(c.n_routed_experts, 0);
    EXPECT_EQ(c.num_moe_layers(), 0);
    EXPECT_FALSE(c.is_moe_layer(2));
  }
  for (const json& j :
       {without("n_shared_experts"), with("n_shared_experts", nullptr), with("n_shared_experts", 0)}) {
    EXPECT_EQ(parse(j).n_shared_experts, 0);
  }
  json sparse = with("moe_layer_freq", 2);
  sparse["num_hidden_layers"] = 6;
  const ModelConfig c = parse(sparse);
  EXPECT_FALSE(c.is_moe_layer(1));
  EXPECT_TRUE(c.is_moe_layer(2));
  EXPECT_FALSE(c.is_moe_layer(3));
  EXPECT_EQ(c.num_moe_layers(), 2);
}

TEST(Config, ReadsBothSpellingsOfRope) {
  json j = without("rope_scaling");
  j.erase("rope_theta");
  j["rope_parameters"] = {{"rope_type", "yarn"}, {"rope_theta", 50000.0}, {"factor", 4}, {"mscale", 0.5}};
  const RopeConfig yarn = parse(j).rope;
  EXPECT_EQ(yarn.type, RopeType::kYarn);
  EXPECT_EQ(yarn.theta, 50000);
  EXPECT_EQ(yarn.factor, 4);
  EXPECT_EQ(yarn.beta_fast, 32);
  EXPECT_EQ(yarn.beta_slow, 1);
  EXPECT_EQ(yarn.mscale, 0.5);
  EXPECT_EQ(yarn.mscale_all_dim, 0);
  EXPECT_EQ(yarn.original_max_position_embeddings, 4096) << "max_position_embeddings when absent";
  EXPECT_FALSE(yarn.attention_factor.has_value());
  j["rope_parameters"] = {{"rope_theta", 70000}};
  EXPECT_EQ(parse(j).rope.type, RopeType::kDefault);
  EXPECT_EQ(parse(j).rope.theta, 70000);
  j["rope_parameters"] = {{"rope_type", "default"}};
  EXPECT_EQ(parse(j).rope.theta, 10000);
  EXPECT_EQ(parse(with("rope_scaling", {{"type", "default"}})).rope.type, RopeType::kDefault);
}

TEST(Config, RefusesRopeItCannotHonour) {
  const auto yarn_with = [](const char* field, const json& value) {
    json j = v3_json();
    j["rope_scaling"][field] = value;
    return j;
  };
  expect_config_error(ErrorKind::kUnsupported, yarn_with("type", "dynamic"), "rope_scaling.type", "dynamic",
                      "yarn");
  expect_config_error(ErrorKind::kUnsupported, yarn_with("rope_type", "longrope"), "rope_scaling.rope_type",
                      "llama3");
  expect_config_error(ErrorKind::kUnsupported, yarn_with("partial_rotary_factor", 0.5),
                      "rope_scaling.partial_rotary_factor");
  expect_config_error(ErrorKind::kCorrupt, yarn_with("factor", 0), "rope_scaling.factor");
  expect_config_error(ErrorKind::kCorrupt, yarn_with("factor", "4"), "rope_scaling.factor");
  expect_config_error(ErrorKind::kCorrupt, yarn_with("factor", nullptr), "rope_scaling.factor", "missing");
  expect_config_error(ErrorKind::kCorrupt, yarn_with("beta_fast", 0.5), "rope_scaling.beta_fast");
  expect_config_error(ErrorKind::kCorrupt, yarn_with("original_max_position_embeddings", -1),
                      "rope_scaling.original_max_position_embeddings");
  expect_config_error(ErrorKind::kCorrupt, with("rope_scaling", {{"factor", 4}}), "rope_scaling.rope_type",
                      "missing");
  expect_config_error(ErrorKind::kCorrupt, with("rope_scaling", 4), "rope_scaling", "expected an object");
  expect_config_error(ErrorKind::kCorrupt, with("rope_theta", 0), "rope_theta");
  expect_config_error(ErrorKind::kUnsupported, with("rope_interleave", false), "rope_interleave");
}

TEST(Config, RefusesOtherArchitecturesAndListsTheSupported) {
  for (const char* name : {"GemmaForCausalLM", "NoSuchModel"}) {
    expect_config_error(ErrorKind::kUnsupported, with("architectures", {name}), "architectures", name,
                        "DeepseekV2ForCausalLM, DeepseekV3ForCausalLM, LlamaForCausalLM");
  }
  json j = without("architectures");
  j["model_type"] = "gemma";
  expect_config_error(ErrorKind::kUnsupported, j, "model_type", "gemma", "DeepseekV3ForCausalLM");
  j.erase("model_type");
  expect_config_error(ErrorKind::kCorrupt, j, "architectures", "missing");
  for (const json& value : {json("DeepseekV3ForCausalLM"), json::array(), json::array({3})}) {
    expect_config_error(ErrorKind::kCorrupt, with("architectures", value), "architectures",
                        "a list with one name");
  }
}

TEST(Config, RefusesByNameWhatItCannotDo) {
  expect_config_error(ErrorKind::kUnsupported, with("compression_config", json::object()),
                      "compression_config", "compressed-tensors W8A8");
  expect_config_error(ErrorKind::kUnsupported, with("vision_config", json::object()), "vision_config",
                      "multimodal");
  expect_config_error(ErrorKind::kUnsupported, with("audio_config", {{"a", 1}}), "audio_config",
                      "multimodal");
  expect_config_error(ErrorKind::kUnsupported, with("hidden_act", "gelu"), "hidden_act", "\"gelu\"", "silu");
  expect_config_error(ErrorKind::kUnsupported, with("attention_bias", true), "attention_bias");
  expect_config_error(ErrorKind::kUnsupported, with("mlp_bias", true), "mlp_bias");
  expect_config_error(ErrorKind::kUnsupported, with("sliding_window", 4095), "sliding_window");
  expect_config_error(ErrorKind::kUnsupported, with("torch_dtype", "float8_e4m3fn"), "torch_dtype",
                      "bfloat16");
  expect_config_error(ErrorKind::kUnsupported, with("topk_method", "best"), "topk_method", "\"best\"",
                      "noaux_tc");
  expect_config_error(ErrorKind::kUnsupported, with("scoring_func", "tanh"), "scoring_func", "\"tanh\"",
                      "sigmoid");
  expect_config_error(ErrorKind::kUnsupported, with("scoring_func", "softmax"), "scoring_func", "noaux_tc");
  json unused_window = with("sliding_window", 4096);
  unused_window["use_sliding_window"] = false;
  EXPECT_EQ(parse(unused_window).hidden_size, 64);
  EXPECT_EQ(parse(with("dtype", "bfloat16")).dtype, DType::kBf16) << "the newer name wins";
  EXPECT_EQ(parse(with("torch_dtype", "float16")).dtype, DType::kF16);
}

TEST(Config, RequiredSizesAreCheckedOneByOne) {
  const json bad[] = {-1, 0, 1.5, "64", true, json::array(), 18446744073709551615u, int64_t{1} << 40};
  for (const char* field : {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                            "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
                            "intermediate_size", "moe_intermediate_size", "num_experts_per_tok"}) {
    expect_config_error(ErrorKind::kCorrupt, without(field), field, "missing", "expected an integer in [");
    expect_config_error(ErrorKind::kCorrupt, with(field, nullptr), field, "missing");
    for (const json& value : bad)
      expect_config_error(ErrorKind::kCorrupt, with(field, value), field, "expected an integer");
  }
  for (const char* field : {"n_shared_experts", "n_routed_experts", "q_lora_rank", "first_k_dense_replace",
                            "num_nextn_predict_layers"}) {
    expect_config_error(ErrorKind::kCorrupt, with(field, -1), field, "is -1", "expected");
    expect_config_error(ErrorKind::kCorrupt, with(field, int64_t{1} << 40), field);
  }
  expect_config_error(ErrorKind::kCorrupt, with("moe_layer_freq", 0), "moe_layer_freq");
  expect_config_error(ErrorKind::kCorrupt, with("max_position_embeddings", 0), "max_position_embeddings");
}

TEST(Config, RelationsBetweenFieldsAreChecked) {
  expect_config_error(ErrorKind::kCorrupt, with("num_experts_per_tok", 17), "num_experts_per_tok", "is 17",
                      "[1, 16]");
  expect_config_error(ErrorKind::kCorrupt, with("num_experts_per_tok", 9), "num_experts_per_tok",
                      "at most 8");
  expect_config_error(ErrorKind::kCorrupt, with("n_group", 3), "n_group", "is 3",
                      "divisor of n_routed_experts = 16");
  expect_config_error(ErrorKind::kCorrupt, with("n_group", 16), "n_group", "at least 2 experts");
  expect_config_error(ErrorKind::kCorrupt, with("topk_group", 5), "topk_group", "at most n_group = 4");
  expect_config_error(ErrorKind::kCorrupt, with("num_key_value_heads", 2), "num_key_value_heads",
                      "num_attention_heads = 8");
  expect_config_error(ErrorKind::kCorrupt, with("qk_rope_head_dim", 7), "qk_rope_head_dim", "even");
  expect_config_error(ErrorKind::kCorrupt, with("rms_norm_eps", -1e-6), "rms_norm_eps");
  expect_config_error(ErrorKind::kCorrupt, with("routed_scaling_factor", "x"), "routed_scaling_factor");
  expect_config_error(ErrorKind::kCorrupt, with("norm_topk_prob", 1), "norm_topk_prob", "true or false");
  expect_config_error(ErrorKind::kCorrupt, with("hidden_act", 1), "hidden_act", "a string");
  // Three groups of four, of which two.
  json odd = with("n_routed_experts", 12);
  odd["n_group"] = 3;
  EXPECT_EQ(parse(odd).n_group, 3);
}

TEST(Config, TokenIdsMayBeOneOrMany) {
  EXPECT_EQ(parse(with("eos_token_id", {5, 7})).eos_token_ids, (std::vector<int32_t>{5, 7}));
  EXPECT_TRUE(parse(with("eos_token_id", nullptr)).eos_token_ids.empty());
  EXPECT_FALSE(parse(with("bos_token_id", -1)).bos_token_id.has_value());
  for (const json& value :
       {json("1"), json(1.0), json({1, "2"}), json(int64_t{1} << 31), json(18446744073709551615u)}) {
    expect_config_error(ErrorKind::kCorrupt, with("eos_token_id", value), "eos_token_id", "token id");
  }
}

TEST(Config, RefusesWhatIsNotAConfig) {
  expect_error(
      ErrorKind::kCorrupt, [] { parse_config("", "f"); }, "f: not valid JSON");
  expect_error(
      ErrorKind::kCorrupt, [] { parse_config("[1]", "f"); }, "f", "expected an object");
  expect_error(
      ErrorKind::kCorrupt, [] { parse_config(R"({"a":1e999})", "f"); }, "not valid JSON");
  const TempDir dir;
  expect_error(
      ErrorKind::kNotFound, [&] { load_config(dir.path()); }, "config.json", "No such file");
  expect_error(
      ErrorKind::kNotFound, [&] { load_config(dir.file("x")); }, "no such directory");
}

TEST(Config, RefusesMarkerFiles) {
  const TempDir dir;
  dir.write("config.json", json_text(v3_json()));
  EXPECT_EQ(load_config(dir.path()).hidden_size, 64);
  dir.write("hf_quant_config.json", "{}");
  expect_error(
      ErrorKind::kUnsupported, [&] { load_config(dir.path()); }, "hf_quant_config.json", "quantised");
  dir.write("adapter_config.json", "{}");
  expect_error(
      ErrorKind::kUnsupported, [&] { load_config(dir.path()); }, "adapter_config.json", "LoRA");
}

TEST(GenerationConfig, ReadsWhatIsThere) {
  const GenerationConfig kjv = load_generation_config(std::string(DUET_MODELS) + "/kjv-8m");
  EXPECT_EQ(kjv.eos_token_ids, std::vector<int32_t>{1});
  EXPECT_EQ(kjv.do_sample, true);
  EXPECT_EQ(kjv.temperature, 0.6);
  EXPECT_EQ(kjv.top_p, 0.95);
  EXPECT_FALSE(kjv.top_k.has_value());
  const GenerationConfig g = parse_generation_config(
      R"({"eos_token_id":[3,4],"top_k":20,"min_p":0.1,"repetition_penalty":1.05,"top_p":null})", "g.json");
  EXPECT_EQ(g.eos_token_ids, (std::vector<int32_t>{3, 4}));
  EXPECT_EQ(g.top_k, 20);
  EXPECT_EQ(g.min_p, 0.1);
  EXPECT_EQ(g.repetition_penalty, 1.05);
  EXPECT_FALSE(g.top_p.has_value());
  const TempDir dir;
  EXPECT_TRUE(load_generation_config(dir.path()).eos_token_ids.empty());
  expect_error(
      ErrorKind::kCorrupt, [] { parse_generation_config(R"({"temperature":-1})", "g.json"); }, "g.json",
      "\"temperature\"");
  expect_error(
      ErrorKind::kCorrupt, [] { parse_generation_config(R"({"top_p":2})", "g.json"); }, "\"top_p\"");
  expect_error(
      ErrorKind::kCorrupt, [] { parse_generation_config("7", "g.json"); }, "expected an object");
}

}  // namespace
}  // namespace duet
