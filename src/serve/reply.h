// Reply: one generation call on its way: submits its prompts to the engine and turns what comes back into
// OpenAI's JSON, whole or as server-sent events. Made by the Api on a worker; deltas are taken on the one
// reply thread, in order. Always holds: a client that goes away has its requests aborted before the next
// step.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/engine_thread.h"
#include "serve/call.h"
#include "serve/exchange.h"
#include "serve/metrics.h"
#include "serve/reasoning.h"
#include "serve/work_queue.h"

namespace duet {

/// What replies share.
struct ReplyContext {
  Engine& engine;
  EngineThread& thread;
  WorkQueue& replies;  // one thread
  ServerMetrics& metrics;
  std::atomic<int64_t>& live;  // continuations under way
  ReasoningStyle reasoning;    // of chats
};

class Reply : public std::enable_shared_from_this<Reply> {
 public:
  Reply(ReplyContext context, Call call, std::string model, std::shared_ptr<Exchange> exchange);
  ~Reply();

  /// Prepares every prompt (throws what is wrong with it), then submits them all.
  void start();
  /// Ends the reply with this error; on the replies' thread.
  void fail(const std::exception_ptr& error);

 private:
  using Json = nlohmann::ordered_json;
  struct Choice {
    std::string text, reasoning;
    ReasoningSplitter splitter;
    std::vector<TokenLogprob> logprobs;
    Json stop_reason;
    std::string finish_reason;
    int64_t tokens = 0, last_ns = 0;
    size_t text_offset = 0;  // of the next token, for logprobs
    bool begun = false, done = false;
  };

  GenerationRequest prepare(Prompt prompt, const std::string& name);
  void take(size_t prompt, Delta&& delta);
  void note_metrics(size_t prompt, Choice& choice, const Delta& delta);
  void stream_delta(size_t prompt, size_t index, Delta& delta);
  void event(const Json& json);
  void finish();
  void abort();
  Json frame() const;
  Json usage() const;
  Json chunk_choice(size_t index, const ReasoningSplitter::Parts& parts, Json logprobs) const;
  Json whole_choice(size_t index);
  Json logprobs_json(Choice& choice, const std::vector<TokenLogprob>& tokens, bool first_is_null) const;
  Json completion_logprobs(Choice& choice, const std::vector<TokenLogprob>& tokens, bool first_is_null) const;
  Json prompt_logprobs_json(size_t prompt) const;
  std::string token_text(int32_t id) const;

  ReplyContext context_;
  const Call call_;
  const std::string model_, id_;
  const int64_t created_;
  std::shared_ptr<Exchange> exchange_;
  std::vector<std::string> prompt_texts_;
  std::vector<std::vector<int32_t>> prompt_ids_;
  std::vector<std::vector<TokenLogprob>> prompt_logprobs_;
  std::vector<Choice> choices_;
  size_t unfinished_ = 0;
  int64_t cached_tokens_ = 0;
  bool ended_ = false;
  std::mutex mutex_;  // guards the next two
  std::vector<int64_t> submitted_;
  bool gone_ = false;
};

}  // namespace duet
