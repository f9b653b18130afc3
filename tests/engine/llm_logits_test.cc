// Llm::logits: every way to cut the same prompts gives the same bits.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <random>

#include "duet/llm.h"

namespace duet {
namespace {

LlmOptions options_for(int ranks) {
  LlmOptions o;
  o.model = std::string(DUET_FIXTURES) + "/golden/v3-tiny";
  o.skip_tokenizer_init = true;
  o.dtype = "float32";
  o.comm_dtype = "bf16";
  o.tensor_parallel_size = ranks;
  o.threads = 1;
  o.kv_cache_memory = "8MiB";
  o.max_num_batched_tokens = 128;
  o.all_logits = true;
  return o;
}

std::vector<Prompt> random_prompts(int64_t vocab) {
  std::mt19937 rng(17);
  std::vector<Prompt> prompts;
  for (const size_t length : {11u, 1u, 17u, 2u, 9u}) {
    Prompt& p = prompts.emplace_back();
    for (size_t i = 0; i < length; ++i)
      p.token_ids.push_back(std::uniform_int_distribution<int32_t>(0, static_cast<int32_t>(vocab) - 1)(rng));
  }
  return prompts;
}

using All = std::vector<std::vector<float>>;

All logits_of(Llm& llm, const std::vector<Prompt>& prompts, const LogitsOptions& how = {}) {
  All all(prompts.size());
  const int64_t vocab = llm.vocab_size();
  llm.logits(prompts, how, [&](size_t prompt, int64_t first, int64_t rows, const float* values) {
    ASSERT_LT(prompt, prompts.size());
    ASSERT_EQ(first * vocab, static_cast<int64_t>(all[prompt].size())) << "rows in order, each once";
    all[prompt].insert(all[prompt].end(), values, values + rows * vocab);
  });
  for (size_t i = 0; i < prompts.size(); ++i)
    EXPECT_EQ(all[i].size(), prompts[i].token_ids.size() * static_cast<size_t>(vocab));
  return all;
}

double distance(const All& a, const All& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i)
    for (size_t j = 0; j < a[i].size(); ++j) {
      difference += std::pow(static_cast<double>(a[i][j]) - b[i][j], 2);
      norm += std::pow(static_cast<double>(b[i][j]), 2);
    }
  return std::sqrt(difference / norm);
}

class LlmLogits : public ::testing::TestWithParam<int> {};

TEST_P(LlmLogits, ChunksBudgetsAndNeighboursChangeNoBit) {
  const auto llm = Llm::load(options_for(GetParam()));
  const auto prompts = random_prompts(llm->vocab_size());
  const All whole = logits_of(*llm, prompts);
  for (const int64_t chunk : {1, 3, 7, 100}) {
    LogitsOptions how;
    how.chunk = chunk;
    EXPECT_EQ(logits_of(*llm, prompts, how), whole) << "chunk " << chunk;
  }
  for (size_t i = 0; i < prompts.size(); ++i)
    EXPECT_EQ(logits_of(*llm, {prompts[i]})[0], whole[i]) << "prompt " << i << " alone";
  for (const int64_t budget : {1, 6, 13}) {
    LlmOptions options = options_for(GetParam());
    options.max_num_batched_tokens = budget;
    EXPECT_EQ(logits_of(*Llm::load(options), prompts), whole) << "budget " << budget;
  }
}

TEST_P(LlmLogits, DecodeIsCloseAndExactInItself) {
  const auto llm = Llm::load(options_for(GetParam()));
  const auto prompts = random_prompts(llm->vocab_size());
  LogitsOptions decode;
  decode.decode = true;
  const All whole = logits_of(*llm, prompts), stepped = logits_of(*llm, prompts, decode);
  // Another form of attention, or nothing was tested. (On two ranks the wire may round the difference away.)
  if (GetParam() == 1) {
    EXPECT_NE(stepped, whole);
  }
  // The wire's bf16 rounds both to 8 bits; a rounding that falls the other way moves 2⁻⁹.
  EXPECT_LT(distance(stepped, whole), 2e-2);
  for (size_t i = 0; i < prompts.size(); ++i)
    EXPECT_EQ(logits_of(*llm, {prompts[i]}, decode)[0], stepped[i]) << "prompt " << i << " alone";
}

TEST_P(LlmLogits, EverySplitOfABatchGivesTheSameBits) {
  const auto plain = Llm::load(options_for(GetParam()));
  const auto prompts = random_prompts(plain->vocab_size());  // 40 tokens
  const All whole = logits_of(*plain, prompts);
  for (const int parts : {2, 3}) {
    for (int64_t at = 1; at < 40; at += GetParam() == 1 ? 1 : 5) {
      LlmOptions options = options_for(GetParam());
      options.split_at = at;
      options.micro_batches = parts;
      const auto llm = Llm::load(options);
      EXPECT_EQ(logits_of(*llm, prompts), whole) << "split at " << at << ", micro-batches " << parts;
      EXPECT_EQ(llm->stats().steps_overlapped, 1);
    }
  }
}

TEST_P(LlmLogits, APreemptedPromptHandsOverEachRowOnce) {
  const auto plain = Llm::load(options_for(GetParam()));
  const auto prompts = random_prompts(plain->vocab_size());
  const All whole = logits_of(*plain, prompts);
  LlmOptions options = options_for(GetParam());
  options.block_size = 2;
  options.max_model_len = 18;
  options.kv_cache_memory = "12000";  // 25 tokens of 480 bytes; the prompts want 40
  const auto llm = Llm::load(options);
  LogitsOptions how;
  how.chunk = 2;
  EXPECT_EQ(logits_of(*llm, prompts, how), whole);
  EXPECT_GT(llm->stats().preemptions, 0);
}

// Steps of decodes and prompt chunks together, split and not, preempted and not: each generated
// token's logprobs are a fingerprint of its logits.
TEST_P(LlmLogits, GenerationIsBitIdenticalInMixedSplitAndPreemptedSteps) {
  auto run = [&](const std::function<void(LlmOptions&)>& set, LlmStats* stats) {
    LlmOptions options = options_for(GetParam());
    options.all_logits = false;
    set(options);
    const auto llm = Llm::load(options);
    SamplingParams params;
    params.temperature = 0.0;
    params.ignore_eos = true;
    params.logprobs = 20;
    std::vector<SamplingParams> each(5, params);
    for (size_t i = 0; i < each.size(); ++i) each[i].max_tokens = 6 + static_cast<int>(i) * 3;
    std::vector<std::pair<int32_t, float>> all;
    for (const RequestOutput& o : llm->generate(random_prompts(llm->vocab_size()), each))
      for (const TokenLogprob& lp : o.completions.at(0).logprobs) {
        all.emplace_back(lp.token_id, lp.logprob);
        all.insert(all.end(), lp.top.begin(), lp.top.end());
      }
    if (stats) *stats = llm->stats();
    return all;
  };
  const auto plain = run([](LlmOptions&) {}, nullptr);
  ASSERT_EQ(plain.size(), (6u + 9 + 12 + 15 + 18) * 21);
  for (const int parts : {2, 3}) {
    for (const int64_t budget : {5, 12, 128}) {
      LlmStats stats;
      EXPECT_EQ(run(
                    [&](LlmOptions& o) {
                      o.dbo = "on";
                      o.micro_batches = parts;
                      o.max_num_batched_tokens = budget;
                      o.dbo_prefill_token_threshold = 4;
                      o.dbo_decode_token_threshold = 2;
                    },
                    &stats),
                plain)
          << parts << " micro-batches, budget " << budget;
      EXPECT_GT(stats.steps_overlapped, 10);
    }
    LlmStats stats;
    EXPECT_EQ(run(
                  [&](LlmOptions& o) {
                    o.dbo = "on";
                    o.micro_batches = parts;
                    o.dbo_prefill_token_threshold = o.dbo_decode_token_threshold = 2;
                    o.block_size = 3;
                    o.max_model_len = 40;
                    o.kv_cache_memory = "22000";  // 45 tokens of 480 bytes; the five want 100
                  },
                  &stats),
              plain)
        << parts << " micro-batches, tiny cache";
    EXPECT_GT(stats.preemptions, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, LlmLogits, ::testing::Values(1, 2));

TEST(Int8Cache, HoldsMoreAndGeneratesTheSameHoweverStepsAreCut) {
  const auto run = [](const char* cache, int64_t budget, int parts, int64_t* preemptions) {
    LlmOptions options = options_for(2);
    options.all_logits = false;
    options.kv_cache_dtype = cache;
    options.block_size = 3;
    options.max_model_len = 40;
    options.kv_cache_memory = "22000";  // the five want 100 tokens: 480 bytes each in float32, 168 in int8
    options.max_num_batched_tokens = budget;
    options.dbo = parts > 1 ? "on" : "off";
    options.micro_batches = std::max(parts, 2);
    options.dbo_prefill_token_threshold = options.dbo_decode_token_threshold = 2;
    const auto llm = Llm::load(options);
    SamplingParams params;
    params.temperature = 0.0;
    params.max_tokens = 12;
    params.ignore_eos = true;
    params.logprobs = 20;
    std::vector<std::pair<int32_t, float>> all;
    for (const RequestOutput& o : llm->generate(random_prompts(llm->vocab_size()), {params}))
      for (const TokenLogprob& lp : o.completions.at(0).logprobs)
        all.insert(all.end(), lp.top.begin(), lp.top.end());
    *preemptions = llm->stats().preemptions;
    EXPECT_EQ(llm->stats().steps_overlapped > 0, parts > 1);
    return all;
  };
  int64_t preemptions = 0;
  run("auto", 128, 1, &preemptions);
  EXPECT_GT(preemptions, 0);
  const auto whole = run("int8", 128, 1, &preemptions);
  EXPECT_EQ(preemptions, 0);
  EXPECT_EQ(whole.size(), 5u * 12 * 20);
  EXPECT_EQ(run("int8", 6, 1, &preemptions), whole);
  EXPECT_EQ(run("int8", 128, 3, &preemptions), whole);
}

TEST(Int8Cache, IsRefusedWhereNothingIsLatent) {
  LlmOptions options = options_for(1);
  options.model = std::string(DUET_FIXTURES) + "/golden/llama-tiny";
  options.kv_cache_dtype = "int8";
  try {
    Llm::load(options);
    FAIL() << "loaded";
  } catch (const LlmError& e) {
    EXPECT_NE(std::string(e.what()).find("latent attention"), std::string::npos) << e.what();
  }
}

TEST(LlmLogitsErrors, AreNamed) {
  const auto llm = Llm::load(options_for(1));
  const auto sink = [](size_t, int64_t, int64_t, const float*) {};
  LogitsOptions both;
  both.chunk = 2;
  both.decode = true;
  Prompt p;
  p.token_ids = {1, 2};
  EXPECT_THROW(llm->logits({p}, both, sink), LlmError);
  LogitsOptions negative;
  negative.chunk = -1;
  EXPECT_THROW(llm->logits({p}, negative, sink), LlmError);
  EXPECT_THROW(llm->logits({Prompt()}, {}, sink), LlmError);
  Prompt text;
  text.text = "words";
  EXPECT_THROW(llm->logits({text}, {}, sink), LlmError);  // no tokenizer was loaded
}

}  // namespace
}  // namespace duet
