#include "load/shard.h"

#include <algorithm>

#include "helpers.h"
#include "load/config.h"

namespace duet {
namespace {

TEST(Shard, SlicesTileTheWhole) {
  for (const int64_t total : {0, 1, 7, 64, 129280}) {
    for (const int ranks : {1, 2, 3, 8, 16}) {
      int64_t reached = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const Slice s = shard(total, rank, ranks);
        EXPECT_EQ(s.begin, reached);
        EXPECT_GE(s.size(), total / ranks);
        EXPECT_LE(s.size(), total / ranks + 1);
        reached = s.end;
      }
      EXPECT_EQ(reached, total);
    }
  }
}

ModelConfig config_12_heads_6_experts() {
  ModelConfig c;
  c.file = "dir/config.json";
  c.num_attention_heads = 12;
  c.num_hidden_layers = 3;
  c.first_k_dense_replace = 1;
  c.n_routed_experts = 6;
  c.intermediate_size = 40;
  c.moe_intermediate_size = 5;
  c.vocab_size = 101;
  return c;
}

TEST(RankCount, DividesHeadsAndWholeExperts) {
  const ModelConfig c = config_12_heads_6_experts();
  EXPECT_EQ(valid_rank_counts(c, true), (std::vector<int>{1, 2, 3, 6}));
  EXPECT_EQ(valid_rank_counts(c, false),
            (std::vector<int>{1, 2, 3, 4}));  // 6 would leave an expert's slice empty
  for (const int ranks : valid_rank_counts(c, true)) check_rank_count(c, ranks, true);
  expect_error(
      ErrorKind::kInvalidArgument, [&] { check_rank_count(c, 5, false); }, "dir/config.json",
      "5 ranks do not divide num_attention_heads = 12", "1, 2, 3, 4");
  expect_error(
      ErrorKind::kInvalidArgument, [&] { check_rank_count(c, 4, true); },
      "4 ranks do not divide n_routed_experts = 6", "1, 2, 3, 6");
  expect_error(
      ErrorKind::kInvalidArgument, [&] { check_rank_count(c, 6, false); }, "moe_intermediate_size = 5");
  expect_error(
      ErrorKind::kInvalidArgument, [&] { check_rank_count(c, 0, false); }, "at least one rank");
  expect_error(
      ErrorKind::kInvalidArgument, [&] { check_rank_count(c, -2, true); }, "at least one rank");
}

TEST(RankCount, ADenseModelHasNoExpertsToDivide) {
  ModelConfig c = config_12_heads_6_experts();
  c.first_k_dense_replace = 3;
  EXPECT_EQ(valid_rank_counts(c, true), (std::vector<int>{1, 2, 3, 4, 6, 12}));
  c.n_routed_experts = 0;
  EXPECT_EQ(valid_rank_counts(c, true), (std::vector<int>{1, 2, 3, 4, 6, 12}));
  c.vocab_size = 3;
  expect_error(
      ErrorKind::kInvalidArgument, [&] { check_rank_count(c, 4, false); }, "vocab_size = 3");
}

TEST(Audit, FindsTheLayerOfATensor) {
  EXPECT_EQ(layer_of_tensor("model.layers.61.eh_proj.weight"), 61);
  EXPECT_EQ(layer_of_tensor("model.layers.0.mlp.gate.weight"), 0);
  for (const char* name :
       {"lm_head.weight", "model.layers.", "model.layers.7", "model.layers.x.y", "model.layers.-1.y",
        "model.layers.7x.y", "model.layers.99999999999999999999.y", "xmodel.layers.1.y"}) {
    EXPECT_EQ(layer_of_tensor(name), -1) << name;
  }
}

TEST(Audit, SeparatesMtpLayersFromUnexpectedTensors) {
  const std::vector<std::string> names = {"z.extra",
                                          "model.norm.weight",
                                          "model.layers.0.a",
                                          "model.layers.2.a",
                                          "model.layers.2.eh_proj.weight",
                                          "model.layers.3.a",
                                          "model.layers.1.odd",
                                          "model.layers.0.self_attn.rotary_emb.inv_freq"};
  const TensorAudit audit = audit_tensors(names, 2, {"model.norm.weight", "model.layers.0.a"});
  EXPECT_EQ(audit.mtp_layers, 2);
  EXPECT_EQ(audit.mtp_tensors, 3);
  EXPECT_EQ(audit.unexpected, (std::vector<std::string>{"model.layers.1.odd", "z.extra"}));
  ::testing::internal::CaptureStderr();
  log_audit(audit);
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 2) << log;
  EXPECT_THAT(log, ::testing::HasSubstr("skipped 2 multi-token-prediction layer(s)"));
  EXPECT_THAT(log, ::testing::HasSubstr("model.layers.1.odd, z.extra"));
  ::testing::internal::CaptureStderr();
  log_audit({});
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace duet
