// config.json of the families with grouped-query attention.
#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "config_helpers.h"
#include "load/shard.h"

namespace duet {
namespace {
using nlohmann::json;

json fixture(const std::string& name) {
  std::ifstream in(std::string(DUET_FIXTURES) + "/golden/" + name + "/config.json");
  return read_json(std::move(in));
}
json with(json j, const char* field, const json& value) {
  j[field] = value;
  return j;
}
json without(json j, const char* field) {
  j.erase(field);
  return j;
}
TEST(GqaConfig, ReadsTheFixtures) {
  const ModelConfig llama = parse(fixture("llama-tiny"));
  EXPECT_EQ(llama.architecture, Architecture::kLlama);
  EXPECT_FALSE(llama.latent_attention());
  EXPECT_EQ(llama.num_key_value_heads, 2);
  EXPECT_EQ(llama.head_dim, 16);
  EXPECT_EQ(llama.rope.type, RopeType::kLlama3);
  EXPECT_EQ(llama.rope.factor, 8.0);
  EXPECT_EQ(llama.rope.high_freq_factor, 4.0);
  EXPECT_EQ(llama.rope.original_max_position_embeddings, 64);
  EXPECT_FALSE(llama.qkv_bias || llama.o_bias || llama.qk_norm);

  const ModelConfig qwen2 = parse(fixture("qwen2-tiny"));
  EXPECT_EQ(qwen2.head_dim, 8) << "hidden_size / num_attention_heads";
  EXPECT_TRUE(qwen2.qkv_bias && !qwen2.o_bias && !qwen2.qk_norm);

  const ModelConfig qwen3 = parse(fixture("qwen3-tiny"));
  EXPECT_EQ(qwen3.head_dim, 32);
  EXPECT_TRUE(qwen3.qk_norm && qwen3.tie_word_embeddings && !qwen3.qkv_bias);
  EXPECT_EQ(qwen3.num_moe_layers(), 0);

  const ModelConfig moe = parse(fixture("qwen3moe-tiny"));
  EXPECT_EQ(moe.architecture, Architecture::kQwen3Moe);
  EXPECT_EQ(moe.n_routed_experts, 16);
  EXPECT_EQ(moe.num_experts_per_tok, 4);
  EXPECT_EQ(moe.n_shared_experts, 0);
  EXPECT_TRUE(moe.norm_topk_prob);
  EXPECT_EQ(moe.scoring_func, ScoringFunc::kSoftmax);
  EXPECT_EQ(moe.topk_method, TopkMethod::kGreedy);
  EXPECT_EQ(moe.num_moe_layers(), 3);
}

TEST(GqaConfig, AbsentFieldsFollowFromOthers) {
  const ModelConfig c = parse(without(without(fixture("llama-tiny"), "head_dim"), "num_key_value_heads"));
  EXPECT_EQ(c.head_dim, 8);
  EXPECT_EQ(c.num_key_value_heads, 8);
  EXPECT_EQ(c.max_position_embeddings, 4096);
  EXPECT_EQ(parse(without(fixture("qwen3-tiny"), "head_dim")).head_dim, 128) << "Qwen3 names its own default";
  EXPECT_EQ(parse(without(fixture("qwen3moe-tiny"), "head_dim")).head_dim, 8);
  const ModelConfig biased = parse(with(fixture("llama-tiny"), "attention_bias", true));
  EXPECT_TRUE(biased.qkv_bias && biased.o_bias);
}

TEST(GqaConfig, WhichLayersHaveExperts) {
  json j = with(fixture("qwen3moe-tiny"), "num_hidden_layers", 6);
  j["decoder_sparse_step"] = 2;
  j["mlp_only_layers"] = {3};
  const ModelConfig c = parse(j);
  std::vector<int64_t> moe;
  for (int64_t l = 0; l < 6; ++l)
    if (c.is_moe_layer(l)) moe.push_back(l);
  EXPECT_EQ(moe, (std::vector<int64_t>{1, 5}));
  EXPECT_EQ(parse(with(j, "num_experts", 0)).num_moe_layers(), 0);
  EXPECT_FALSE(parse(without(j, "norm_topk_prob")).norm_topk_prob);
  expect_config_error(ErrorKind::kCorrupt, with(j, "mlp_only_layers", 3), "mlp_only_layers", "a list");
  expect_config_error(ErrorKind::kCorrupt, with(j, "mlp_only_layers", {"3"}), "mlp_only_layers", "a list");
  expect_config_error(ErrorKind::kCorrupt, with(j, "num_experts_per_tok", 17), "num_experts_per_tok");
}

TEST(GqaConfig, RopeScaling) {
  json j = fixture("llama-tiny");
  j["rope_scaling"] = {{"type", "linear"}, {"factor", 4.0}};
  EXPECT_EQ(parse(j).rope.type, RopeType::kLinear);
  EXPECT_EQ(parse(j).rope.factor, 4.0);
  j["rope_scaling"] = {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 1024}};
  EXPECT_EQ(parse(j).rope.type, RopeType::kYarn);
  j["rope_scaling"] = {{"rope_type", "dynamic"}, {"factor", 4.0}};
  expect_config_error(ErrorKind::kUnsupported, j, "rope_scaling.rope_type", "dynamic", "llama3");
  j["rope_scaling"] = {
      {"rope_type", "llama3"}, {"factor", 4.0}, {"low_freq_factor", 4}, {"high_freq_factor", 4}};
  expect_config_error(ErrorKind::kCorrupt, j, "rope_scaling.high_freq_factor", "above low_freq_factor");
  j["rope_scaling"].erase("low_freq_factor");
  expect_config_error(ErrorKind::kCorrupt, j, "rope_scaling.low_freq_factor", "missing");
}

TEST(GqaConfig, RefusesByName) {
  const json llama = fixture("llama-tiny");
  expect_config_error(ErrorKind::kCorrupt, with(llama, "num_key_value_heads", 3), "num_key_value_heads",
                      "divisor");
  expect_config_error(ErrorKind::kCorrupt, with(llama, "head_dim", 15), "head_dim", "even");
  expect_config_error(ErrorKind::kUnsupported, with(llama, "mlp_bias", true), "mlp_bias");
  expect_config_error(ErrorKind::kUnsupported, with(llama, "sliding_window", 4095), "sliding_window");
  expect_config_error(ErrorKind::kUnsupported, with(llama, "partial_rotary_factor", 0.5),
                      "partial_rotary_factor");
  json qwen = with(fixture("qwen2-tiny"), "sliding_window", 4095);
  EXPECT_EQ(parse(qwen).num_hidden_layers, 3) << "use_sliding_window is false";
  EXPECT_EQ(parse(without(qwen, "use_sliding_window")).num_hidden_layers, 3) << "and so by default";
  qwen["use_sliding_window"] = true;
  EXPECT_EQ(parse(qwen).num_hidden_layers, 3) << "no layer lies beyond max_window_layers";
  qwen["max_window_layers"] = 2;
  expect_config_error(ErrorKind::kUnsupported, qwen, "sliding_window");
  expect_config_error(ErrorKind::kUnsupported,
                      with(llama, "layer_types", {"full_attention", "sliding_attention", "full_attention"}),
                      "layer_types", "full_attention");
}

TEST(GqaConfig, Mistral) {
  const json j = fixture("mistral-tiny");
  const ModelConfig c = parse(j);
  EXPECT_EQ(c.architecture, Architecture::kMistral);
  EXPECT_EQ(c.head_dim, 24);
  EXPECT_EQ(c.num_key_value_heads, 4);
  EXPECT_EQ(parse(without(j, "head_dim")).head_dim, 8);
  EXPECT_EQ(parse(without(j, "max_position_embeddings")).max_position_embeddings, 131072);
  EXPECT_FALSE(parse(with(j, "attention_bias", true)).qkv_bias) << "no field of this family";
}

TEST(GqaConfig, SlidingWindowOfMistral) {
  json j = with(fixture("mistral-tiny"), "max_position_embeddings", 32768);
  EXPECT_NO_THROW(parse(j)) << "null: none";
  expect_config_error(ErrorKind::kUnsupported, with(j, "sliding_window", 4096), "sliding_window", "4096");
  expect_config_error(ErrorKind::kUnsupported, with(j, "sliding_window", 32767), "sliding_window");
  EXPECT_NO_THROW(parse(with(j, "sliding_window", 32768))) << "no sequence is longer";
  expect_config_error(ErrorKind::kUnsupported, without(j, "sliding_window"), "sliding_window", "missing",
                      "absent means 4096");
  EXPECT_NO_THROW(parse(with(without(j, "sliding_window"), "max_position_embeddings", 4096)));
  expect_config_error(ErrorKind::kCorrupt, with(j, "sliding_window", "4k"), "sliding_window");
}

TEST(GqaConfig, Mixtral) {
  const json j = fixture("mixtral-tiny");
  const ModelConfig c = parse(j);
  EXPECT_EQ(c.n_routed_experts, 8);
  EXPECT_EQ(c.num_experts_per_tok, 3);
  EXPECT_EQ(c.moe_intermediate_size, c.intermediate_size);
  EXPECT_TRUE(c.norm_topk_prob) << "a softmax over the chosen ones";
  EXPECT_EQ(c.num_moe_layers(), 3);
  EXPECT_EQ(c.expert_names().block, std::string("block_sparse_moe."));
  EXPECT_EQ(parse(without(j, "rope_theta")).rope.theta, 1e6);
  EXPECT_EQ(parse(without(j, "rms_norm_eps")).rms_norm_eps, 1e-5);
  EXPECT_NO_THROW(parse(without(j, "sliding_window"))) << "none, unlike Mistral";
  expect_config_error(ErrorKind::kUnsupported, with(j, "sliding_window", 4095), "sliding_window");
  expect_config_error(ErrorKind::kCorrupt, with(j, "num_experts_per_tok", 9), "num_experts_per_tok");
}

TEST(GqaConfig, LayersWithAWindowOfQwen) {
  json j = with(fixture("qwen2-tiny"), "use_sliding_window", true);
  j["sliding_window"] = 64;
  j.erase("max_window_layers");
  EXPECT_NO_THROW(parse(j)) << "the first 28 layers never have one";
  expect_config_error(ErrorKind::kUnsupported, with(j, "num_hidden_layers", 29), "sliding_window");
  j["max_window_layers"] = 0;
  expect_config_error(ErrorKind::kUnsupported, j, "sliding_window");
  EXPECT_NO_THROW(parse(with(j, "layer_types", {"full_attention", "full_attention", "full_attention"})))
      << "the list decides";
  j.erase("sliding_window");
  j["max_position_embeddings"] = 8192;
  expect_config_error(ErrorKind::kUnsupported, j, "sliding_window", "absent means 4096");
  EXPECT_NO_THROW(parse(with(j, "sliding_window", nullptr)));
  json moe = with(fixture("qwen3moe-tiny"), "use_sliding_window", true);
  moe["sliding_window"] = 64;
  moe["max_window_layers"] = 48;
  expect_config_error(ErrorKind::kUnsupported, moe, "sliding_window");
}

TEST(GqaConfig, RankCounts) {
  // 12 heads, 2 kv heads: 3 ranks would part a kv head from its group.
  json j = with(fixture("llama-tiny"), "num_attention_heads", 12);
  EXPECT_EQ(valid_rank_counts(parse(j), false), (std::vector<int>{1, 2, 4, 6, 12}));
  expect_error(
      ErrorKind::kInvalidArgument, [&] { check_rank_count(parse(j), 3, false); }, "num_key_value_heads = 2",
      "1, 2, 4, 6, 12");
}

}  // namespace
}  // namespace duet
