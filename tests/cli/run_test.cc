// The verbs that run or look at a model, on models/kjv-8m and the tiny golden checkpoints.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "cli/inspect.h"
#include "load/checkpoint.h"
#include "load/config.h"
#include "run_cli.h"

namespace duet {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

const char* const kKjv = DUET_MODELS "/kjv-8m";
const char* const kTiny = DUET_FIXTURES "/golden/v3-tiny";

// Small limits: these tests are about the verbs, not about memory.
std::vector<std::string> with_limits(std::vector<std::string> args) {
  for (const char* arg : {"--max-num-batched-tokens", "256", "--max-num-seqs", "8", "--threads", "1"}) {
    args.emplace_back(arg);
  }
  return args;
}

std::vector<json> rows_of(const std::string& text) {
  std::vector<json> rows;
  for (const std::string& line : lines_of(text)) rows.push_back(read_json(line));
  return rows;
}

json golden_row(size_t index) {
  return read_json(read_all(std::string(kKjv) + "/golden.json"))["rows"][index];
}

// Tokens that float32 rounding cannot change: those before the first small margin.
std::vector<int> sure_tokens(const json& row, size_t most) {
  std::vector<int> tokens;
  for (size_t i = 0; i < most && i < row["token_ids"].size(); ++i) {
    if (row["margins"][i].get<double>() < 0.005) break;
    tokens.push_back(row["token_ids"][i]);
  }
  return tokens;
}

TEST(Generate, GoldenContinuationOnOneAndTwoRanks) {
  const TempDir dir;
  const std::vector<int> expected = sure_tokens(golden_row(0), 24);
  ASSERT_GT(expected.size(), 8u);
  for (const char* ranks : {"1", "2"}) {
    const CliRun result = run(with_limits({"generate",      kKjv,
                                           "--prompt",      "In the beginning God",
                                           "--max-tokens",  std::to_string(expected.size()),
                                           "--temperature", "0",
                                           "--dtype",       "float32",
                                           "--comm-dtype",  "f32",
                                           "-tp",           ranks,
                                           "--dbo",         "off",
                                           "--output",      dir.file("o.jsonl"),
                                           "--json",        dir.file("r.json")}));
    ASSERT_EQ(result.code, 0) << result.err;
    const std::vector<json> rows = rows_of(read_all(dir.file("o.jsonl")));
    ASSERT_EQ(rows.size(), 1u);
    EXPECT_EQ(rows[0]["prompt"], "In the beginning God");
    EXPECT_EQ(rows[0]["prompt_token_ids"], golden_row(0)["prompt_token_ids"]);
    EXPECT_EQ(rows[0]["token_ids"].get<std::vector<int>>(), expected);
    EXPECT_EQ(rows[0]["finish_reason"], "length");
    EXPECT_FALSE(rows[0].contains("index"));
    EXPECT_FALSE(rows[0].contains("logprobs"));
    EXPECT_EQ(result.out, "");
    EXPECT_THAT(result.err, AllOf(HasSubstr("prefill"),
                                  HasSubstr(std::string(ranks) == "1" ? "one rank" : "hidden share")));
    const json report = read_json(read_all(dir.file("r.json")));
    EXPECT_EQ(report["prefill_tokens"], golden_row(0)["prompt_token_ids"].size());
    EXPECT_EQ(report["requests"], 1);
    EXPECT_EQ(report["steps_overlapped"], 0);
    EXPECT_EQ(report["tensor_parallel_size"], std::stoi(ranks));
    if (std::string(ranks) == "2") {
      EXPECT_GT(report["comm_ms"].get<double>(), 0);
    }
  }
}

TEST(Generate, SeveralContinuationsWithLogprobsInOrder) {
  const TempDir dir;
  const std::string input =
      dir.write("p.jsonl",
                "{\"prompt_token_ids\": [0, 1232, 261]}\n"
                "{\"messages\": [{\"role\": \"user\", \"content\": \"Count to 3.\"}]}\n");
  const CliRun result =
      run(with_limits({"generate", kKjv, "--prompts", input, "--n", "2", "--max-tokens", "5", "--temperature",
                       "1", "--seed", "3", "--logprobs", "2", "--ignore-eos", "--output", "-"}));
  ASSERT_EQ(result.code, 0) << result.err;
  const std::vector<json> rows = rows_of(result.out);
  ASSERT_EQ(rows.size(), 4u);
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i]["index"], i % 2);
    EXPECT_EQ(rows[i]["token_ids"].size(), 5u);
    ASSERT_EQ(rows[i]["logprobs"].size(), 5u);
    EXPECT_EQ(rows[i]["logprobs"][0]["token_id"], rows[i]["token_ids"][0]);
    EXPECT_EQ(rows[i]["logprobs"][0]["top"].size(), 2u);
    EXPECT_LE(rows[i]["logprobs"][0]["logprob"].get<double>(), 0.0);
  }
  EXPECT_TRUE(rows[0]["prompt"].is_null());
  EXPECT_EQ(rows[1]["prompt_token_ids"], json({0, 1232, 261}));
  EXPECT_THAT(rows[2]["prompt"].get<std::string>(), HasSubstr("Count to 3."));
}

TEST(Generate, OverlapChangesNothingButIsThere) {
  const TempDir dir;
  std::string texts[2];
  for (const char* dbo : {"off", "on"}) {
    const bool on = std::string(dbo) == "on";
    const CliRun result = run(with_limits({"generate",
                                           kKjv,
                                           "--prompt",
                                           "In the beginning God",
                                           "And it came to pass",
                                           "--max-tokens",
                                           "6",
                                           "--temperature",
                                           "0",
                                           "-tp",
                                           "2",
                                           "--dbo",
                                           dbo,
                                           "--dbo-prefill-token-threshold",
                                           "2",
                                           "--dbo-decode-token-threshold",
                                           "2",
                                           "--output",
                                           dir.file("o.jsonl"),
                                           "--json",
                                           dir.file("r.json"),
                                           "--trace",
                                           dir.file("t.json")}));
    ASSERT_EQ(result.code, 0) << result.err;
    texts[on] = read_all(dir.file("o.jsonl"));
    EXPECT_EQ(read_json(read_all(dir.file("r.json")))["steps_overlapped"] > 0, on);
    const CliRun summary = run({"trace", "summary", dir.file("t.json"), "--json", "-"});
    ASSERT_EQ(summary.code, 0) << summary.err;
    const json trace = read_json(summary.out);
    EXPECT_EQ(trace["ranks"], 2);
    EXPECT_EQ(trace["steps_overlapped"] > 0, on);
  }
  EXPECT_EQ(texts[0], texts[1]);
}

TEST(Generate, ReadableOutputAndNoTokenizer) {
  const CliRun text = run(with_limits(
      {"generate", kKjv, "--prompt", "In the beginning God", "--max-tokens", "4", "--temperature", "0"}));
  ASSERT_EQ(text.code, 0) << text.err;
  EXPECT_THAT(text.out, AllOf(HasSubstr("In the beginning God"), HasSubstr("[4 tokens, length]")));
  const CliRun ids = run(with_limits({"generate", kTiny, "--prompt-token-ids", "1,2,3", "--max-tokens", "4",
                                      "--temperature", "0", "--ignore-eos"}));
  ASSERT_EQ(ids.code, 0) << ids.err;
  EXPECT_THAT(ids.out, HasSubstr("1,2,3 -> "));
  const CliRun no_text = run(with_limits({"generate", kTiny, "--prompt", "a"}));
  EXPECT_EQ(no_text.code, kExitError);
  EXPECT_THAT(no_text.err, HasSubstr("tokenizer.json"));
  EXPECT_EQ(run(with_limits({"generate", kTiny, "--prompt-token-ids", "1", "--stop", "a"})).code, kExitUsage);
}

TEST(Logits, GoldenAndBitIdenticalUnderEverySplit) {
  const TempDir dir;
  const json golden = read_json(read_all(std::string(kTiny) + "/golden.json"));
  std::string lines;
  for (size_t i = 0; i < 2; ++i) lines += json_text(json{{"prompt_token_ids", golden["prompts"][i]}}) + "\n";
  const std::string input = dir.write("p.jsonl", lines);
  const auto logits = [&](const std::string& name, std::vector<std::string> extra) {
    std::vector<std::string> args{"logits",       kTiny,     "--prompts", input,          "--output",
                                  dir.file(name), "--dtype", "float32",   "--comm-dtype", "f32"};
    args.insert(args.end(), extra.begin(), extra.end());
    const CliRun result = run(with_limits(args));
    EXPECT_EQ(result.code, 0) << result.err;
    return dir.file(name);
  };
  const std::string whole = logits("whole.safetensors", {"-tp", "2"});
  const SafetensorsFile expected = SafetensorsFile::open(std::string(kTiny) + "/golden_logits.safetensors");
  const SafetensorsFile found = SafetensorsFile::open(whole);
  EXPECT_EQ(found.header().tensors.size(), 2u);
  for (const char* name : {"logits.0", "logits.1"}) {
    const SafetensorsEntry* x = expected.find(name);
    const SafetensorsEntry* y = found.find(name);
    ASSERT_TRUE(x && y);
    EXPECT_EQ(x->shape, y->shape);
    double difference = 0, norm = 0;
    for (uint64_t at = 0; at < x->end - x->begin; at += sizeof(float)) {
      float a, b;
      std::memcpy(&a, expected.data(*x) + at, sizeof a);
      std::memcpy(&b, found.data(*y) + at, sizeof b);
      difference += (double{a} - b) * (double{a} - b);
      norm += double{a} * a;
    }
    EXPECT_LE(std::sqrt(difference / norm), 2e-5) << name;  // the project's bound for float32
  }
  const std::string bytes = read_all(whole);
  EXPECT_EQ(read_all(logits("s1", {"-tp", "2", "--split-at", "1"})), bytes);
  EXPECT_EQ(read_all(logits("s9", {"-tp", "2", "--split-at", "9", "--dbo", "on"})), bytes);
  EXPECT_EQ(read_all(logits("c7", {"-tp", "2", "--chunk", "7"})), bytes);
  EXPECT_EQ(
      run({"logits", kTiny, "--prompt-token-ids", "1", "--output", "x", "--chunk", "2", "--decode"}).code,
      kExitUsage);
}

TEST(Inspect, CountsWhatTheCheckpointHolds) {
  const std::string golden = DUET_FIXTURES "/golden/";
  for (const std::string& model :
       std::vector<std::string>{kKjv, kTiny, golden + "v2-tiny", golden + "v2lite-tiny"}) {
    const Checkpoint checkpoint = Checkpoint::open(model);
    int64_t elements = 0;
    for (const TensorInfo& tensor : checkpoint.tensors()) {
      int64_t count = 1;
      for (const int64_t size : tensor.shape) count *= size;
      elements += count;
    }
    EXPECT_EQ(count_parameters(load_config(model)).total(), elements) << model;
  }
}

TEST(Inspect, ShowsAModelAndAConfigAlone) {
  const CliRun text = run({"inspect", kKjv, "-tp", "2"});
  ASSERT_EQ(text.code, 0) << text.err;
  EXPECT_THAT(text.out, AllOf(HasSubstr("DeepseekV3ForCausalLM"), HasSubstr("parameters"),
                              HasSubstr("KV cache"), HasSubstr("one of 2 ranks"), HasSubstr("BF16")));
  const CliRun config = run({"inspect", DUET_MODELS "/configs/deepseek-678m.json", "--json", "-"});
  ASSERT_EQ(config.code, 0) << config.err;
  const json facts = read_json(config.out);
  EXPECT_TRUE(facts["checkpoint"].is_null());
  EXPECT_GT(facts["parameters"]["total"], 600'000'000);
  EXPECT_LT(facts["parameters"]["active_per_token"], facts["parameters"]["total"]);
  EXPECT_GT(facts["per_rank"]["weights"], 0);
  const CliRun seven = run({"inspect", kKjv, "-tp", "7"});
  EXPECT_EQ(seven.code, kExitError);
  EXPECT_THAT(seven.err, HasSubstr("7"));
  const CliRun tight = run({"inspect", kKjv, "--kv-cache-memory", "900TiB"});
  EXPECT_EQ(tight.code, 0);
  EXPECT_THAT(tight.out, HasSubstr("does not fit"));
}

TEST(Quantised, CheckpointsAndFlagsRun) {
  const std::string golden = DUET_FIXTURES "/golden/";
  const auto weights = [&](const std::string& model, const std::vector<std::string>& flags) {
    std::vector<std::string> args{"inspect", model, "--json", "-"};
    args.insert(args.end(), flags.begin(), flags.end());
    const CliRun result = run(args);
    EXPECT_EQ(result.code, 0) << result.err;
    return read_json(result.out)["per_rank"]["weights"].get<int64_t>();
  };
  EXPECT_THAT(run({"inspect", golden + "v3-tiny-fp8"}).out, HasSubstr("fp8, 128 x 128 blocks"));
  EXPECT_THAT(run({"inspect", golden + "v3-tiny-w8a8"}).out, HasSubstr("compressed-tensors W8A8"));
  EXPECT_THAT(run({"inspect", golden + "v3-tiny-w8a8-ms"}).out, HasSubstr("W8A8_DYNAMIC"));
  EXPECT_LT(weights(kKjv, {"--quantization", "w8a8"}),
            weights(kKjv, {"--quantization", "w8a8", "--float-head"}));
  EXPECT_LT(weights(kKjv, {"--quantization", "w8a8", "--float-head"}), weights(kKjv, {}));

  const auto generate = [&](const std::string& model, std::vector<std::string> flags) {
    flags.insert(flags.begin(), {"generate", model, "--prompt-token-ids", "3,1,4,1,5", "--temperature", "0",
                                 "--max-tokens", "8", "--output", "-"});
    const CliRun result = run(flags);
    EXPECT_EQ(result.code, 0) << result.err;
    return read_json(result.out)["token_ids"];
  };
  for (const char* model : {"v3-tiny-fp8", "v3-tiny-w8a8", "v3-tiny-w8a8-ms"}) {
    EXPECT_EQ(generate(golden + model, {}).size(), 8) << model;
  }
  // "In the beginning God" is learnt well enough to survive int8, on one rank and on two.
  const std::vector<std::string> known{"--prompt", "In the beginning God", "--max-tokens", "8"};
  const auto text = [&](std::vector<std::string> flags) {
    flags.insert(flags.begin(), {"generate", kKjv, "--temperature", "0", "--output", "-"});
    flags.insert(flags.end(), known.begin(), known.end());
    const CliRun result = run(flags);
    EXPECT_EQ(result.code, 0) << result.err;
    return read_json(result.out)["text"];
  };
  EXPECT_EQ(text({"--quantization", "w8a8"}), text({}));
  EXPECT_EQ(text({"--quantization", "w8a8", "-tp", "2"}), text({}));
  const CliRun alone = run({"generate", kKjv, "--float-head", "--prompt", "a"});
  EXPECT_EQ(alone.code, kExitUsage);
  EXPECT_THAT(alone.err, HasSubstr("--quantization"));
}

TEST(Version, NamesTheBuild) {
  const CliRun result = run({"version"});
  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.out,
              AllOf(HasSubstr("duet "), HasSubstr("compiler"), HasSubstr("CPU level"), HasSubstr("MPI")));
  EXPECT_EQ(run({"--version"}).out, result.out);
  EXPECT_EQ(run({"--help"}).code, 0);
  EXPECT_THAT(run({"--help"}).out, Not(HasSubstr("internal")));
  EXPECT_EQ(run({}).code, kExitUsage);
}

TEST(Doctor, MeasuresAndAdvises) {
  const CliRun result = run({"doctor", "--json", "-"});
  ASSERT_EQ(result.code, 0) << result.err;
  const json facts = read_json(result.out);
  EXPECT_GT(facts["gemm_f32_gflops_per_core"], 0.1);
  EXPECT_GT(facts["memory_read_gb_per_s_one_core"], 0.1);
  EXPECT_GT(facts["thread_ranks"]["latency_us"], 0.0);
  EXPECT_FALSE(facts["advice"].empty());
}

}  // namespace
}  // namespace duet
