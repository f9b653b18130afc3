// The public API on the trained demonstration model and the golden checkpoints.
#include "duet/llm.h"
#include "base/json_text.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/kjv_support.h"
#include "golden/harness.h"

namespace duet {
namespace {

using nlohmann::json;

const std::string kKjv = std::string(DUET_MODELS) + "/kjv-8m";

Prompt id_prompt(std::vector<int32_t> ids) {
  Prompt p;
  p.token_ids = std::move(ids);
  return p;
}

std::vector<Prompt> some_prompts() {
  std::vector<Prompt> prompts;
  for (const char* text :
       {"In the beginning God", "And it came to pass", "The LORD is my shepherd;", "Blessed are the",
        "And Moses said unto", "Jesus answered and said", "Let us", "Woe unto", "My son,", "Behold,"})
    prompts.push_back(text_prompt(text));
  return prompts;
}

std::vector<std::vector<int32_t>> tokens_of(const std::vector<RequestOutput>& outputs) {
  std::vector<std::vector<int32_t>> tokens;
  for (const RequestOutput& o : outputs)
    for (const Completion& c : o.completions) tokens.push_back(c.token_ids);
  return tokens;
}

std::string error_of(const std::function<void()>& body, const std::string& kind) {
  try {
    body();
  } catch (const LlmError& e) {
    EXPECT_EQ(e.kind(), kind) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

struct KjvGolden {
  std::vector<Prompt> prompts;
  json rows;
};

KjvGolden kjv_golden() {
  KjvGolden golden;
  golden.rows = read_json(std::ifstream(kKjv + "/golden.json")).at("rows");
  std::ifstream file(kKjv + "/prompts.jsonl");
  for (std::string line; std::getline(file, line);) {
    const json prompt = read_json(line);
    Prompt& p = golden.prompts.emplace_back();
    if (prompt.contains("messages"))
      p.messages_json = json_text(prompt["messages"]);
    else
      p.text = prompt["prompt"];
  }
  EXPECT_EQ(golden.prompts.size(), 41u);
  return golden;
}

// Tokens that float32 arithmetic cannot change: up to the first margin below 0.005.
size_t safe_tokens(const json& row) {
  const std::vector<double> margins = row.at("margins");
  return static_cast<size_t>(
      std::find_if(margins.begin(), margins.end(), [](double m) { return m < 0.005; }) - margins.begin());
}

TEST(LlmKjv, ContinuesAsTheReferenceDoes) {
  const KjvGolden golden = kjv_golden();
  for (const char* dbo : {"off", "on"}) {
    LlmOptions options = kjv_options(2);
    options.dbo = dbo;
    options.dbo_prefill_token_threshold = 32;
    options.dbo_decode_token_threshold = 8;
    const auto llm = Llm::load(options);
    const auto outputs = llm->generate(golden.prompts, {greedy(100)});
    ASSERT_EQ(outputs.size(), golden.rows.size());
    for (size_t i = 0; i < outputs.size(); ++i) {
      const json& row = golden.rows[i];
      EXPECT_EQ(outputs[i].prompt_token_ids, row.at("prompt_token_ids").get<std::vector<int32_t>>());
      const auto expected = row.at("token_ids").get<std::vector<int32_t>>();
      const auto& got = outputs[i].completions.at(0).token_ids;
      ASSERT_EQ(got.size(), 100u);
      EXPECT_EQ(outputs[i].completions[0].finish_reason, "length");
      const size_t safe = safe_tokens(row);
      for (size_t t = 0; t < std::min<size_t>(safe, 100); ++t)
        ASSERT_EQ(got[t], expected[t]) << "prompt " << i << " token " << t << " dbo " << dbo;
    }
    const LlmStats stats = llm->stats();
    EXPECT_EQ(stats.steps_overlapped > 0, std::string(dbo) == "on");
    EXPECT_EQ(stats.decode_tokens, 41 * 99);
    int64_t prompt_tokens = 0;
    for (const auto& o : outputs) prompt_tokens += static_cast<int64_t>(o.prompt_token_ids.size());
    EXPECT_EQ(stats.prefill_tokens, prompt_tokens);
    EXPECT_GT(stats.decode_seconds, 0);
    EXPECT_GT(stats.comm_ms, 0);
  }
}

TEST(LlmKjv, EndsAtTheModelsEndOfSequence) {
  const KjvGolden golden = kjv_golden();
  const auto llm = Llm::load(kjv_options());
  SamplingParams params = greedy(100);
  params.ignore_eos = false;
  const auto outputs = llm->generate(golden.prompts, {params});
  int ended = 0;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const json& row = golden.rows[i];
    const auto expected = row.at("token_ids").get<std::vector<int32_t>>();
    const size_t eos = static_cast<size_t>(std::find(expected.begin(), expected.end(), 1) - expected.begin());
    if (eos == expected.size() || safe_tokens(row) <= eos) continue;
    ++ended;
    const Completion& c = outputs[i].completions.at(0);
    EXPECT_EQ(c.finish_reason, "stop");
    EXPECT_EQ(c.token_ids,
              std::vector<int32_t>(expected.begin(), expected.begin() + static_cast<int64_t>(eos) + 1));
    EXPECT_EQ(c.text, row.at("text_until_eos").get<std::string>());
  }
  EXPECT_GT(ended, 10);
  params.min_tokens = 60;
  for (const auto& o : llm->generate(golden.prompts, {params}))
    EXPECT_GE(o.completions.at(0).token_ids.size(), 60u);
}

TEST(LlmGolden, GreedyEqualsEveryCheckpoints) {
  for (const char* name : kFamilies) {
    const std::string dir = std::string(DUET_FIXTURES) + "/golden/" + name;
    const json golden = read_json(std::ifstream(dir + "/golden.json"));
    for (const int64_t batched : {256, 7}) {
      LlmOptions options = kjv_options(2);
      options.model = dir;
      options.skip_tokenizer_init = true;
      options.max_num_batched_tokens = batched;
      options.max_num_seqs = 5;
      const auto llm = Llm::load(options);
      std::vector<Prompt> prompts;
      for (const json& ids : golden.at("prompts")) prompts.push_back(id_prompt(ids));
      const auto outputs = llm->generate(prompts, {greedy(16)});
      for (size_t i = 0; i < outputs.size(); ++i) {
        EXPECT_EQ(outputs[i].completions.at(0).token_ids, golden.at("greedy")[i].get<std::vector<int32_t>>())
            << name << " prompt " << i << " budget " << batched;
        EXPECT_EQ(outputs[i].completions[0].text, "");
      }
    }
  }
}

TEST(LlmKjv, ATinyCachePreemptsAndGivesTheSameTokens) {
  const auto prompts = some_prompts();
  const auto roomy = Llm::load(kjv_options());
  SamplingParams sampled = greedy(60);
  sampled.temperature = 1.0;
  sampled.seed = 3;
  LlmOptions options = kjv_options();
  options.block_size = 4;
  options.max_model_len = 100;
  options.kv_cache_memory = "300000";  // some 156 tokens of 1920 bytes; ten prompts want 700
  const auto tiny = Llm::load(options);
  for (const SamplingParams& params : {greedy(60), sampled}) {
    const auto expected = roomy->generate(prompts, {params});
    const auto got = tiny->generate(prompts, {params});
    EXPECT_EQ(tokens_of(got), tokens_of(expected));
  }
  EXPECT_GT(tiny->stats().preemptions, 0);
  EXPECT_EQ(roomy->stats().preemptions, 0);
  // Work is counted once however often it is done.
  EXPECT_EQ(tiny->stats().prefill_tokens, roomy->stats().prefill_tokens);
  EXPECT_EQ(tiny->stats().decode_tokens, roomy->stats().decode_tokens);
}

TEST(LlmKjv, TheCacheLimitsTheLengthWhenNobodyAskedForMore) {
  LlmOptions options = kjv_options();
  options.kv_cache_memory = "100000";  // 52 tokens of 1920 bytes, three blocks of 16
  const auto llm = Llm::load(options);
  EXPECT_EQ(llm->max_model_len(), 48);
  const auto outputs = llm->generate(some_prompts(), {greedy(1000)});
  for (const RequestOutput& o : outputs) {
    EXPECT_EQ(o.prompt_token_ids.size() + o.completions.at(0).token_ids.size(), 48u);
    EXPECT_EQ(o.completions[0].finish_reason, "length");
  }
  options.max_model_len = 49;
  const std::string text = error_of([&] { Llm::load(options); }, "resource exhausted");
  EXPECT_NE(text.find("48"), std::string::npos) << text;
}

TEST(LlmKjv, TheSameSeedGivesTheSameTextWhateverSharesTheBatch) {
  const auto llm = Llm::load(kjv_options());
  auto sampled = [](uint64_t seed) {
    SamplingParams p;
    p.temperature = 1.0;
    p.top_p = 0.95;
    p.max_tokens = 30;
    p.seed = seed;
    return p;
  };
  const auto prompts = some_prompts();
  const auto alone = llm->generate({prompts[3]}, {sampled(7)});
  std::vector<SamplingParams> params;
  for (size_t i = 0; i < prompts.size(); ++i) params.push_back(sampled(i == 3 ? 7 : 100 + i));
  const auto together = llm->generate(prompts, params);
  EXPECT_EQ(together[3].completions[0].text, alone[0].completions[0].text);
  EXPECT_NE(llm->generate({prompts[3]}, {sampled(8)})[0].completions[0].text, alone[0].completions[0].text);
  // Continuations: the first is that of n = 1, the others are their own.
  SamplingParams three = sampled(7);
  three.n = 3;
  const auto many = llm->generate({prompts[3]}, {three});
  ASSERT_EQ(many[0].completions.size(), 3u);
  EXPECT_EQ(many[0].completions[0].text, alone[0].completions[0].text);
  EXPECT_NE(many[0].completions[1].text, many[0].completions[0].text);
  EXPECT_NE(many[0].completions[1].text, many[0].completions[2].text);
  // Without a seed, two calls differ, and a new engine repeats the first.
  SamplingParams free = sampled(0);
  free.seed.reset();
  const auto a = Llm::load(kjv_options()), b = Llm::load(kjv_options());
  const auto first = a->generate({prompts[3]}, {free}), second = a->generate({prompts[3]}, {free});
  EXPECT_NE(tokens_of(first), tokens_of(second));
  EXPECT_EQ(tokens_of(b->generate({prompts[3]}, {free})), tokens_of(first));
}

TEST(LlmKjv, LogprobsAreThoseOfTheChosenAndTheLikeliest) {
  const auto llm = Llm::load(kjv_options());
  SamplingParams params = greedy(12);
  params.logprobs = 4;
  const auto outputs = llm->generate(some_prompts(), {params});
  for (const RequestOutput& o : outputs) {
    const Completion& c = o.completions.at(0);
    ASSERT_EQ(c.logprobs.size(), c.token_ids.size());
    for (size_t t = 0; t < c.logprobs.size(); ++t) {
      const TokenLogprob& lp = c.logprobs[t];
      ASSERT_EQ(lp.top.size(), 4u);
      EXPECT_EQ(lp.token_id, c.token_ids[t]);
      EXPECT_EQ(lp.top[0].first, lp.token_id);
      EXPECT_EQ(lp.top[0].second, lp.logprob);
      double sum = 0;
      for (const auto& [id, logprob] : lp.top) sum += std::exp(logprob);
      EXPECT_LE(sum, 1.0 + 1e-6);
      EXPECT_GT(sum, 0);
    }
  }
}

TEST(LlmKjv, StopStringsEndTheTextBeforeThem) {
  const auto llm = Llm::load(kjv_options());
  const Prompt prompt = text_prompt("In the beginning God");
  const std::string whole = llm->generate({prompt}, {greedy(40)})[0].completions[0].text;
  ASSERT_GT(whole.size(), 60u);
  // Every stretch of six characters, most of them across the border of two tokens.
  for (size_t at = 5; at + 6 < 60; at += 3) {
    SamplingParams params = greedy(40);
    params.stop = {whole.substr(at, 6), "never said"};
    const Completion c = llm->generate({prompt}, {params})[0].completions[0];
    EXPECT_EQ(c.text, whole.substr(0, whole.find(params.stop[0])));
    EXPECT_EQ(c.finish_reason, "stop");
    EXPECT_LT(c.token_ids.size(), 40u);
  }
  SamplingParams by_id = greedy(40);
  const auto ids = llm->generate({prompt}, {greedy(40)})[0].completions[0].token_ids;
  by_id.stop_token_ids = {ids[9]};
  const Completion c = llm->generate({prompt}, {by_id})[0].completions[0];
  const size_t first = static_cast<size_t>(std::find(ids.begin(), ids.end(), ids[9]) - ids.begin());
  EXPECT_EQ(c.token_ids.size(), first + 1);
  EXPECT_EQ(c.finish_reason, "stop");
  EXPECT_EQ(whole.substr(0, c.text.size()), c.text);
}

TEST(LlmKjv, TheModelsLengthIsTheLimit) {
  LlmOptions options = kjv_options();
  options.max_model_len = 12;
  const auto llm = Llm::load(options);
  EXPECT_EQ(llm->max_model_len(), 12);
  const Completion c = llm->generate({id_prompt({0, 5, 6, 7})}, {greedy(100)})[0].completions[0];
  EXPECT_EQ(c.token_ids.size(), 8u);
  EXPECT_EQ(c.finish_reason, "length");
  EXPECT_EQ(
      llm->generate({id_prompt(std::vector<int32_t>(11, 5))}, {greedy(9)})[0].completions[0].token_ids.size(),
      1u);
  const std::string text = error_of(
      [&] {
        llm->generate({id_prompt({1}), id_prompt(std::vector<int32_t>(12, 5))}, {greedy(1)});
      },
      "invalid argument");
  EXPECT_NE(text.find("prompt 1 has 12 tokens"), std::string::npos) << text;
  EXPECT_NE(text.find("--max-model-len is 12"), std::string::npos) << text;
}

TEST(LlmKjv, WhatIsWrongIsSaidAndLeavesTheEngineUsable) {
  LlmOptions nowhere = kjv_options();
  nowhere.model = "/nonexistent/model";
  error_of([&] { Llm::load(nowhere); }, "not found");
  LlmOptions bad = kjv_options();
  bad.dbo = "perhaps";
  EXPECT_NE(error_of([&] { Llm::load(bad); }, "invalid argument").find("off, on"), std::string::npos);
  LlmOptions without = kjv_options();
  without.dbo = "off";
  const auto llm = Llm::load(without);
  const auto before = tokens_of(llm->generate(some_prompts(), {greedy(5)}));
  error_of([&] { llm->generate({id_prompt({0, 4096})}, {greedy(5)}); }, "invalid argument");
  error_of([&] { llm->generate({id_prompt({-1})}, {greedy(5)}); }, "invalid argument");
  error_of([&] { llm->generate(some_prompts(), {greedy(5), greedy(5)}); }, "invalid argument");
  error_of([&] { llm->generate({Prompt{"a", {1}, ""}}, {greedy(5)}); }, "invalid argument");
  error_of([&] { llm->set_dbo("on"); }, "invalid argument");
  EXPECT_TRUE(llm->generate({}, {greedy(5)}).empty());
  EXPECT_EQ(tokens_of(llm->generate(some_prompts(), {greedy(5)})), before);
  // A caller's exception passes through the run and harms nothing.
  EXPECT_THROW(
      llm->generate(some_prompts(), {greedy(5)}, [](const Progress&) { throw std::logic_error("stop"); }),
      std::logic_error);
  EXPECT_EQ(tokens_of(llm->generate(some_prompts(), {greedy(5)})), before);
}

TEST(LlmKjv, SamplingDefaultsComeFromTheFileOrFromVllm) {
  SamplingParams unset, file, neutral;
  file.temperature = 0.6, file.top_p = 0.95;  // what the model's generation_config.json says
  neutral.temperature = 1.0, neutral.top_p = 1.0;
  for (SamplingParams* p : {&unset, &file, &neutral}) p->seed = 5, p->max_tokens = 30;
  LlmOptions options = kjv_options();
  const auto from_file = Llm::load(options);
  options.generation_config = "vllm";
  const auto from_vllm = Llm::load(options);
  const auto prompts = some_prompts();
  const auto a = tokens_of(from_file->generate(prompts, {file})),
             b = tokens_of(from_file->generate(prompts, {neutral}));
  EXPECT_NE(a, b);
  EXPECT_EQ(tokens_of(from_file->generate(prompts, {unset})), a);
  EXPECT_EQ(tokens_of(from_vllm->generate(prompts, {unset})), b);
}

TEST(LlmKjv, AUsersTextFormsControlTokensOnlyWhenAllowed) {
  Prompt prompt;
  prompt.messages_json = R"([{"role": "user", "content": "a<｜User｜>b"}])";
  LlmOptions options = kjv_options();
  std::string text, same_text;
  const auto with = Llm::load(options)->tokenize(prompt, &text);
  options.control_tokens_in_content = false;
  const auto without = Llm::load(options)->tokenize(prompt, &same_text);
  EXPECT_EQ(text, same_text);
  EXPECT_NE(text.find("a<｜User｜>b"), std::string::npos);
  EXPECT_GT(without.size(), with.size());  // spelt out in ordinary tokens
}

TEST(LlmKjv, ProgressCountsUp) {
  const auto llm = Llm::load(kjv_options());
  Progress last;
  int calls = 0;
  const auto outputs = llm->generate(some_prompts(), {greedy(6)}, [&](const Progress& p) {
    EXPECT_GE(p.requests_done, last.requests_done);
    EXPECT_GE(p.decode_tokens, last.decode_tokens);
    EXPECT_GE(p.seconds, last.seconds);
    last = p;
    ++calls;
  });
  EXPECT_EQ(calls, 6);
  EXPECT_EQ(last.requests_done, 10);
  EXPECT_EQ(last.requests, 10);
  EXPECT_EQ(last.decode_tokens, 50);
}

}  // namespace
}  // namespace duet
