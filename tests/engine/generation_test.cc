// The engine as the server uses it: requests that come and go while it runs, and what prefix hits,
// neighbours and preemption leave unchanged.
#include "engine/generation.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "base/error.h"
#include "engine/engine.h"
#include "engine/engine_thread.h"
#include "engine/kjv_support.h"

namespace duet {
namespace {

LlmOptions caching_options(int ranks = 1) {
  LlmOptions o = kjv_options(ranks);
  o.enable_prefix_caching = true;
  return o;
}

SamplingParams scored_greedy(int max_tokens) {
  SamplingParams p = greedy(max_tokens);
  p.logprobs = 3;
  return p;
}

const std::string kLong =
    "In the beginning God created the heaven and the earth. And the earth was without form, and void; and "
    "darkness was upon the face of the deep. And the Spirit of God moved upon the face of the waters.";

// Bits that depend on logits alone.
void expect_same(const Completion& a, const Completion& b, const std::string& what) {
  EXPECT_EQ(a.token_ids, b.token_ids) << what;
  EXPECT_EQ(a.text, b.text) << what;
  ASSERT_EQ(a.logprobs.size(), b.logprobs.size()) << what;
  for (size_t i = 0; i < a.logprobs.size(); ++i) {
    ASSERT_EQ(a.logprobs[i].logprob, b.logprobs[i].logprob) << what << ", token " << i;
    ASSERT_EQ(a.logprobs[i].top, b.logprobs[i].top) << what << ", token " << i;
  }
}

class PrefixHits : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, PrefixHits, ::testing::Values(1, 2));

TEST_P(PrefixHits, OnPromptBlocksChangeNoBit) {
  LlmOptions options = caching_options(GetParam());
  options.enable_prefix_caching = false;
  const auto plain = Llm::load(options);
  options.enable_prefix_caching = true;
  options.prefix_cache_prompt_only = true;
  const auto caching = Llm::load(options);
  std::vector<Prompt> prompts;
  for (const char* end : {"", " And God said,", " And God said, Let there be light", " Selah"})
    prompts.push_back(text_prompt(kLong + end));
  int64_t cached = 0;
  for (int round = 0; round < 2; ++round) {
    for (size_t i = 0; i < prompts.size(); ++i) {
      const RequestOutput a = plain->generate({prompts[i]}, {scored_greedy(24)})[0];
      const RequestOutput b = caching->generate({prompts[i]}, {scored_greedy(24)})[0];
      EXPECT_EQ(a.cached_tokens, 0);
      cached += b.cached_tokens;
      expect_same(a.completions[0], b.completions[0], "prompt " + std::to_string(i));
    }
    // All at once, sharing blocks while they run.
    const auto together = caching->generate(prompts, {scored_greedy(24)});
    for (size_t i = 0; i < prompts.size(); ++i)
      expect_same(plain->generate({prompts[i]}, {scored_greedy(24)})[0].completions[0],
                  together[i].completions[0], "together " + std::to_string(i));
  }
  EXPECT_GT(cached, 100);
}

TEST(Generation, AConversationReusesWhatDecodingWroteUnlessForbidden) {
  for (const bool prompt_only : {false, true}) {
    LlmOptions options = caching_options();
    options.prefix_cache_prompt_only = prompt_only;
    const auto llm = Llm::load(options);
    const RequestOutput first = llm->generate({text_prompt(kLong)}, {scored_greedy(64)})[0];
    Prompt next;
    next.token_ids = first.prompt_token_ids;
    const auto& answer = first.completions[0].token_ids;
    next.token_ids.insert(next.token_ids.end(), answer.begin(), answer.end());
    next.token_ids.push_back(17);
    const int64_t prompt = static_cast<int64_t>(first.prompt_token_ids.size());
    const int64_t cached = llm->generate({next}, {scored_greedy(1)})[0].cached_tokens;
    EXPECT_EQ(cached > prompt, !prompt_only) << cached << " of " << prompt;
  }
}

TEST(Generation, LogitsDoNotTakeWhatTheCacheHoldsNorLeaveAnything) {
  LlmOptions options = caching_options();
  options.all_logits = true;
  const auto llm = Llm::load(options);
  const auto before = llm->generate({text_prompt(kLong)}, {scored_greedy(8)})[0];
  int64_t rows = 0;
  llm->logits({text_prompt(kLong)}, {}, [&](size_t, int64_t, int64_t n, const float*) { rows += n; });
  EXPECT_EQ(rows, static_cast<int64_t>(before.prompt_token_ids.size()));
  const auto after = llm->generate({text_prompt(kLong)}, {scored_greedy(8)})[0];
  EXPECT_EQ(after.cached_tokens, 0);
  expect_same(before.completions[0], after.completions[0], "after logits");
}

TEST(Generation, PromptLogprobsAreThoseOfTheLogits) {
  LlmOptions options = caching_options();
  options.max_num_seqs = 4;  // the buffer holds four rows: the prompt comes in chunks
  const auto llm = Llm::load(options);
  LlmOptions all = caching_options();
  all.all_logits = true;
  const auto logits_llm = Llm::load(all);
  const int64_t vocab = llm->vocab_size();
  std::vector<float> logits;
  logits_llm->logits({text_prompt(kLong)}, {}, [&](size_t, int64_t, int64_t n, const float* p) {
    logits.insert(logits.end(), p, p + n * vocab);
  });
  SamplingParams p = scored_greedy(3);
  p.prompt_logprobs = 2;
  // A neighbour that decodes meanwhile, then again with the prompt's blocks in the cache.
  for (int round = 0; round < 2; ++round) {
    const auto out = llm->generate({text_prompt("And it came"), text_prompt(kLong)}, {scored_greedy(40), p});
    const RequestOutput& o = out[1];
    ASSERT_EQ(o.prompt_logprobs.size() + 1, o.prompt_token_ids.size());
    for (size_t t = 1; t < o.prompt_token_ids.size(); ++t) {
      const float* row = logits.data() + static_cast<int64_t>(t - 1) * vocab;
      double sum = 0;
      for (int64_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(row[v]));
      const double expected = static_cast<double>(row[o.prompt_token_ids[t]]) - std::log(sum);
      ASSERT_EQ(o.prompt_logprobs[t - 1].token_id, o.prompt_token_ids[t]);
      ASSERT_NEAR(o.prompt_logprobs[t - 1].logprob, expected, 1e-3) << t;
      ASSERT_EQ(o.prompt_logprobs[t - 1].top.size(), 2u);
    }
    EXPECT_EQ(o.completions[0].token_ids.size(), 3u);
  }
}

TEST(Generation, LogitBiasForcesAndForbids) {
  const auto llm = Llm::load(caching_options());
  SamplingParams p = scored_greedy(5);
  const auto plain = llm->generate({text_prompt("And the LORD")}, {p})[0].completions[0].token_ids;
  p.logit_bias = {{plain[0], -100.0}};
  EXPECT_NE(llm->generate({text_prompt("And the LORD")}, {p})[0].completions[0].token_ids[0], plain[0]);
  p.logit_bias = {{42, 100.0}};
  EXPECT_EQ(llm->generate({text_prompt("And the LORD")}, {p})[0].completions[0].token_ids,
            std::vector<int32_t>(5, 42));
  p.logit_bias = {{1 << 20, 1.0}};
  EXPECT_THROW(llm->generate({text_prompt("x")}, {p}), LlmError);
  p.logit_bias = {{1, 101.0}};
  EXPECT_THROW(llm->generate({text_prompt("x")}, {p}), LlmError);
}

// A stream: deltas of all requests, kept by request.
class Streams {
 public:
  DeltaSink sink(int key) {
    return [this, key](Delta&& delta) {
      std::lock_guard lock(mutex_);
      Completion& c = completions_[key];
      c.text += delta.text;
      pieces_[key].push_back(delta.text);
      c.token_ids.insert(c.token_ids.end(), delta.token_ids.begin(), delta.token_ids.end());
      c.logprobs.insert(c.logprobs.end(), delta.logprobs.begin(), delta.logprobs.end());
      if (delta.finish != Finish::kNone) {
        EXPECT_TRUE(c.finish_reason.empty()) << "two finishes";
        c.finish_reason = to_string(delta.finish);
        changed_.notify_all();
      }
      changed_.notify_all();
    };
  }
  Completion wait(int key) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, std::chrono::seconds(60),
                                  [&] { return !completions_[key].finish_reason.empty(); }));
    return completions_[key];
  }
  void wait_for_token(int key) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(60), [&] { return !completions_[key].token_ids.empty(); });
  }
  std::vector<std::string> pieces(int key) {
    std::lock_guard lock(mutex_);
    return pieces_[key];
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int, Completion> completions_;
  std::map<int, std::vector<std::string>> pieces_;
};

TEST(EngineThread, RequestsComeAndGoFromManyThreadsAndChangeNothing) {
  LlmOptions options = caching_options();
  options.kv_cache_memory = "600KiB";  // a few hundred tokens: preemptions happen
  options.max_model_len = 128;
  options.prefix_cache_prompt_only = true;
  const auto engine = Engine::start(options, {});
  std::vector<Prompt> prompts;
  std::vector<SamplingParams> params;
  for (int i = 0; i < 24; ++i) {
    prompts.push_back(text_prompt(kLong.substr(0, static_cast<size_t>(20 + 6 * i))));
    SamplingParams p = scored_greedy(30);
    if (i % 3 == 0) p.temperature = 0.8, p.seed = 7 + i;
    params.push_back(p);
  }
  std::vector<Completion> alone;
  for (size_t i = 0; i < prompts.size(); ++i)
    alone.push_back(engine->generate({prompts[i]}, {params[i]}, {})[0].completions[0]);
  const int64_t preempted_before = engine->counters().preemptions;
  Streams streams;
  {
    EngineThread thread(*engine, {});
    std::vector<std::jthread> clients;
    for (int c = 0; c < 4; ++c) {
      clients.emplace_back([&, c] {
        for (int i = c; i < 24; i += 4) {
          const size_t index = static_cast<size_t>(i);
          thread.submit(engine->prepare(prompts[index], params[index], "prompt"), streams.sink(i));
          // And one that is abandoned at once, or after a while.
          const int64_t id =
              thread.submit(engine->prepare(prompts[index], params[index], "prompt"), streams.sink(100 + i));
          if (i % 2 == 0) streams.wait_for_token(i);
          thread.abort(id);
        }
      });
    }
    clients.clear();
    for (int i = 0; i < 24; ++i) {
      const Completion c = streams.wait(i);
      expect_same(alone[static_cast<size_t>(i)], c, "request " + std::to_string(i));
      EXPECT_EQ(c.finish_reason, "length");
      streams.wait(100 + i);
    }
    // What was aborted has left before a call that came after it runs.
    thread.call([](Engine& e) { EXPECT_EQ(e.blocks().free_blocks(), e.blocks().total_blocks()); });
    const EngineLoad load = thread.load();
    EXPECT_EQ(load.running + load.waiting, 0);
    EXPECT_EQ(load.kv_blocks_used, 0);
  }
  EXPECT_GT(engine->counters().preemptions, preempted_before);
}

TEST(EngineThread, DestructionEndsWhatRuns) {
  const auto engine = Engine::start(caching_options(), {});
  Streams streams;
  {
    EngineThread thread(*engine, {});
    thread.submit(engine->prepare(text_prompt("And"), scored_greedy(200), "prompt"), streams.sink(0));
    streams.wait_for_token(0);
  }
  const Completion c = streams.wait(0);
  EXPECT_TRUE(c.finish_reason == "abort" || c.finish_reason == "length") << c.finish_reason;
  EXPECT_EQ(engine->blocks().free_blocks(), engine->blocks().total_blocks());
}

TEST(EngineThread, StreamedTextNeverShowsAStopStringNorItsBeginning) {
  const auto engine = Engine::start(caching_options(), {});
  SamplingParams p = scored_greedy(60);
  const std::string whole = engine->generate({text_prompt("And God said")}, {p}, {})[0].completions[0].text;
  EngineThread thread(*engine, {});
  int key = 0;
  for (size_t at = 4; at + 6 < whole.size() && at < 80; at += 3, ++key) {
    SamplingParams stopped = p;
    stopped.stop = {whole.substr(at, 6), "never said"};
    Streams streams;
    thread.submit(engine->prepare(text_prompt("And God said"), stopped, "prompt"), streams.sink(key));
    const Completion c = streams.wait(key);
    EXPECT_EQ(c.text, whole.substr(0, whole.find(stopped.stop[0])));
    EXPECT_EQ(c.finish_reason, "stop");
    stopped.include_stop_str_in_output = true;
    Streams kept;
    thread.submit(engine->prepare(text_prompt("And God said"), stopped, "prompt"), kept.sink(key));
    EXPECT_EQ(kept.wait(key).text, c.text + stopped.stop[0]);
  }
  EXPECT_GT(key, 5);
}

}  // namespace
}  // namespace duet
