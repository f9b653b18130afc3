#include "engine/params.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "base/error.h"
#include "engine/options.h"
#include "engine/stop.h"

namespace duet {
namespace {

SamplingDefaults defaults() {
  SamplingDefaults d;
  d.vocab_size = 100;
  d.eos_token_ids = {9, 2, 9};
  return d;
}

// The text must name the field.
void expect_refused(const char* field, const std::function<void(SamplingParams&)>& set) {
  SamplingParams p;
  set(p);
  try {
    resolve_params(p, defaults(), 0);
    ADD_FAILURE() << field << " was accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kInvalidArgument);
    EXPECT_NE(std::string(e.what()).find(field), std::string::npos) << e.what();
  }
}

TEST(Params, EachBadFieldIsNamed) {
  expect_refused("temperature", [](auto& p) { p.temperature = -0.1; });
  expect_refused("temperature", [](auto& p) { p.temperature = NAN; });
  expect_refused("temperature", [](auto& p) { p.temperature = INFINITY; });
  expect_refused("top_p", [](auto& p) { p.top_p = 0; });
  expect_refused("top_p", [](auto& p) { p.top_p = 1.01; });
  expect_refused("top_p", [](auto& p) { p.top_p = NAN; });
  expect_refused("top_k", [](auto& p) { p.top_k = -2; });
  expect_refused("min_p", [](auto& p) { p.min_p = -0.1; });
  expect_refused("min_p", [](auto& p) { p.min_p = 1.1; });
  expect_refused("repetition_penalty", [](auto& p) { p.repetition_penalty = 0; });
  expect_refused("presence_penalty", [](auto& p) { p.presence_penalty = 2.1; });
  expect_refused("frequency_penalty", [](auto& p) { p.frequency_penalty = NAN; });
  expect_refused("n", [](auto& p) { p.n = 0; });
  expect_refused("n", [](auto& p) {
    p.n = 2;
    p.temperature = 0;
  });
  expect_refused("max_tokens", [](auto& p) { p.max_tokens = 0; });
  expect_refused("min_tokens", [](auto& p) { p.min_tokens = -1; });
  expect_refused("min_tokens", [](auto& p) { p.min_tokens = 17; });  // above max_tokens
  expect_refused("stop", [](auto& p) { p.stop = {"a", ""}; });
  expect_refused("stop_token_ids", [](auto& p) { p.stop_token_ids = {100}; });
  expect_refused("stop_token_ids", [](auto& p) { p.stop_token_ids = {-1}; });
  expect_refused("logprobs", [](auto& p) { p.logprobs = -1; });
  expect_refused("logprobs", [](auto& p) { p.logprobs = 101; });
}

TEST(Params, EdgesAreAccepted) {
  SamplingParams p;
  p.temperature = 0;
  p.top_p = 1;
  p.top_k = -1;
  p.min_p = 1;
  p.max_tokens = p.min_tokens = 1;
  p.logprobs = 100;
  const ResolvedParams r = resolve_params(p, defaults(), 0);
  EXPECT_TRUE(r.greedy());
  EXPECT_EQ(r.top_k, 0);
  EXPECT_EQ(r.logprobs, 100);
  p.temperature = 1e-6;  // as vLLM: too small to divide by
  EXPECT_TRUE(resolve_params(p, defaults(), 0).greedy());
}

TEST(Params, TheFileFillsWhatIsUnset) {
  SamplingDefaults d = defaults();
  d.generation.temperature = 0.6;
  d.generation.top_p = 0.95;
  d.generation.top_k = 20;
  d.generation.min_p = 0.1;
  d.generation.repetition_penalty = 1.1;
  ResolvedParams r = resolve_params({}, d, 5);
  EXPECT_EQ(r.temperature, 0.6);
  EXPECT_EQ(r.top_p, 0.95);
  EXPECT_EQ(r.top_k, 20);
  EXPECT_EQ(r.min_p, 0.1);
  EXPECT_EQ(r.repetition_penalty, 1.1);
  EXPECT_EQ(r.seed, 5u);
  SamplingParams p;
  p.temperature = 0.2;
  p.top_k = 0;
  p.seed = 8;
  r = resolve_params(p, d, 5);
  EXPECT_EQ(r.temperature, 0.2);
  EXPECT_EQ(r.top_k, 0);
  EXPECT_EQ(r.top_p, 0.95);
  EXPECT_EQ(r.seed, 8u);
  r = resolve_params({}, defaults(), 0);
  EXPECT_EQ(r.temperature, 1);
  EXPECT_EQ(r.top_p, 1);
  EXPECT_EQ(r.max_tokens, 16);
}

TEST(Params, EosJoinsTheStopTokensUnlessIgnored) {
  SamplingParams p;
  p.stop_token_ids = {50, 2};
  EXPECT_EQ(resolve_params(p, defaults(), 0).stop_token_ids, (std::vector<int32_t>{2, 9, 50}));
  p.ignore_eos = true;
  EXPECT_EQ(resolve_params(p, defaults(), 0).stop_token_ids, (std::vector<int32_t>{2, 50}));
}

TEST(Stop, TokensAndLength) {
  ResolvedParams p;
  p.stop_token_ids = {2, 9};
  p.max_tokens = 5;
  p.min_tokens = 3;
  EXPECT_EQ(check_token(p, 2, 2, 12, 100), Finish::kNone);  // too early
  EXPECT_EQ(check_token(p, 2, 3, 13, 100), Finish::kStop);
  EXPECT_EQ(check_token(p, 4, 4, 14, 100), Finish::kNone);
  EXPECT_EQ(check_token(p, 4, 5, 15, 100), Finish::kLength);
  EXPECT_EQ(check_token(p, 9, 5, 15, 100), Finish::kStop);  // both: it ended by itself
  EXPECT_EQ(check_token(p, 4, 4, 99, 100), Finish::kNone);
  EXPECT_EQ(check_token(p, 4, 4, 100, 100), Finish::kLength);
  EXPECT_STREQ(to_string(Finish::kStop), "stop");
  EXPECT_STREQ(to_string(Finish::kLength), "length");
}

// Text in pieces, cut every way there is: the cut is where it would be in the whole text.
TEST(Stop, StringsAcrossEveryBorder) {
  const std::string text = "say abab and abac, end";
  const std::vector<std::vector<std::string>> cases = {
      {"abac"},          {"ba"}, {"nothing"}, {"end"}, {"d"}, {"abac", " and"}, {"say abab and abac, end"},
      {"and abac", "c,"}};
  for (const auto& stops : cases) {
    for (size_t a = 0; a <= text.size(); ++a) {
      for (size_t b = a; b <= text.size(); ++b) {
        std::string so_far;
        std::optional<size_t> cut;
        for (const std::string& piece : {text.substr(0, a), text.substr(a, b - a), text.substr(b)}) {
          so_far += piece;
          if (const auto match = find_stop(so_far, piece.size(), stops)) cut = match->at;
          if (cut) break;
        }
        // Oracle: the shortest prefix of whole pieces that holds a stop string, its first occurrence.
        std::optional<size_t> expected;
        for (size_t end : {a, b, text.size()}) {
          for (const auto& stop : stops)
            if (const size_t at = text.substr(0, end).find(stop); at != std::string::npos)
              expected = std::min(expected.value_or(at), at);
          if (expected) break;
        }
        ASSERT_EQ(cut, expected) << stops[0] << " with borders " << a << ", " << b;
      }
    }
  }
}

TEST(Options, Bytes) {
  EXPECT_EQ(parse_bytes("4GiB", "f"), int64_t{4} << 30);
  EXPECT_EQ(parse_bytes("1.5 MiB", "f"), 3 << 19);
  EXPECT_EQ(parse_bytes("2GB", "f"), 2000000000);
  EXPECT_EQ(parse_bytes("12", "f"), 12);
  EXPECT_EQ(parse_bytes("1g", "f"), 1 << 30);
  for (const char* bad : {"", "GiB", "0", "-1GiB", "4 gigs", "1e400", "nan", "9e30TiB", "1GiBx", "0.1"})
    EXPECT_THROW(parse_bytes(bad, "--kv-cache-memory"), Error) << bad;
}

TEST(Options, BadChoicesListTheGoodOnes) {
  auto message = [](const std::function<void(LlmOptions&)>& set) -> std::string {
    LlmOptions o;
    o.model = "m";
    set(o);
    try {
      rank_options(o, 1000);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(message([](auto&) {}), "");
  EXPECT_NE(message([](auto& o) { o.dtype = "int4"; }).find("auto, float32, bfloat16, half"),
            std::string::npos);
  EXPECT_NE(message([](auto& o) { o.dbo = "maybe"; }).find("off, on, auto"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.expert_path = "x"; }).find("all-reduce, all-to-all"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.comm_dtype = "int8"; }).find("bf16, f32"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.load_format = "x"; }).find("auto, dummy"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.distributed_executor_backend = "ray"; }).find("threads, mpi"),
            std::string::npos);
  EXPECT_NE(message([](auto& o) { o.tensor_parallel_size = 0; }).find("--tensor-parallel-size"),
            std::string::npos);
  EXPECT_NE(message([](auto& o) { o.micro_batches = -1; }).find("--micro-batches"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.block_size = 0; }).find("--block-size"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.max_num_seqs = 0; }).find("--max-num-seqs"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.dbo_imbalance = NAN; }).find("--dbo-imbalance"), std::string::npos);
  EXPECT_NE(message([](auto& o) {
              o.link_bandwidth = "1gbit", o.distributed_executor_backend = "mpi";
            }).find("--link"),
            std::string::npos);
}

TEST(Options, OverlapIsReservedForOnlyWhenAskedFor) {
  LlmOptions o;
  o.micro_batches = 3;
  EXPECT_EQ(rank_options(o, 1000).max_micro_batches, 1);  // auto, and one rank
  o.tensor_parallel_size = 2;
  EXPECT_EQ(rank_options(o, 1000).max_micro_batches, 3);
  o.micro_batches = 0;
  EXPECT_EQ(rank_options(o, 1000).max_micro_batches, kMostMicroBatches);
  o.micro_batches = 3;
  o.dbo = "on";
  EXPECT_EQ(rank_options(o, 1000).max_micro_batches, 3);
  o.dbo = "off";
  o.split_at = 5;
  o.micro_batches = 1;
  EXPECT_EQ(rank_options(o, 1000).max_micro_batches, 2);
}

TEST(Options, RoomForLogits) {
  LlmOptions o;
  o.max_num_seqs = 7;
  EXPECT_EQ(rank_options(o, 1000).max_logits_rows, 7);
  o.max_num_batched_tokens = 5;
  EXPECT_EQ(rank_options(o, 1000).max_logits_rows, 5);
  o.max_num_batched_tokens = 2048;
  o.all_logits = true;
  EXPECT_EQ(rank_options(o, 4096).max_logits_rows, 2048);
  EXPECT_EQ(rank_options(o, 129280).max_logits_rows, 1038);
}

}  // namespace
}  // namespace duet
