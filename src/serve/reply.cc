#include "serve/reply.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <random>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/json_text.h"
#include "serve/api_error.h"
#include "serve/fields.h"
#include "text/utf8.h"

namespace duet {

namespace {

std::string new_id(const char* prefix) {
  static thread_local std::mt19937_64 random{std::random_device{}()};
  return fmt::format("{}-{:016x}{:016x}", prefix, random(), random());
}

double seconds(int64_t from_ns, int64_t to_ns) {
  return static_cast<double>(to_ns - from_ns) * 1e-9;
}

}  // namespace

Reply::Reply(ReplyContext context, Call call, std::string model, std::shared_ptr<Exchange> exchange)
    : context_(context),
      call_(std::move(call)),
      model_(std::move(model)),
      id_(new_id(call_.chat ? "chatcmpl" : "cmpl")),
      created_(std::time(nullptr)),
      exchange_(std::move(exchange)) {
  ++context_.live;
}

Reply::~Reply() {
  --context_.live;
}

GenerationRequest Reply::prepare(Prompt prompt, const std::string& name) {
  std::string text;
  std::vector<int32_t> ids = context_.engine.tokenize(prompt, &text);
  if (ids.empty()) bad_field(call_.chat ? "messages" : "prompt", name + " is empty");
  const ModelInfo& info = context_.engine.info();
  const int64_t size = static_cast<int64_t>(ids.size());
  const int64_t room = info.max_model_len - size;
  const char* field = call_.chat ? "messages" : "prompt";
  if (room < 1)
    bad_field(field, fmt::format("{} has {} tokens; the longest sequence is {} (--max-model-len), its "
                                 "continuation included",
                                 name, size, info.max_model_len));
  SamplingParams sampling = call_.sampling;
  // Unset in a chat: what the model and an empty cache have room for.
  const int64_t most = std::min(room, info.kv_blocks * info.block_size - size + 1);
  const int64_t wanted = call_.max_tokens.value_or(std::max<int64_t>(most, 1));
  if (wanted > room)
    bad_field("max_tokens",
              fmt::format("max_tokens is {}, but {} has {} tokens and the longest sequence is {} "
                          "(--max-model-len): at most {}",
                          wanted, name, size, info.max_model_len, room));
  sampling.max_tokens = static_cast<int>(wanted);
  Prompt tokens;
  tokens.token_ids = std::move(ids);
  GenerationRequest request = context_.engine.prepare(tokens, sampling, name);
  request.text = std::move(text);
  return request;
}

void Reply::start() {
  std::vector<GenerationRequest> requests;
  for (size_t p = 0; p < call_.prompts.size(); ++p) {
    const std::string name = call_.prompts.size() > 1 ? fmt::format("prompt {}", p) : "prompt";
    requests.push_back(prepare(call_.prompts[p], name));
    prompt_texts_.push_back(requests.back().text);
    prompt_ids_.push_back(requests.back().prompt);
    if (call_.echo && prompt_texts_.back().empty() && context_.engine.text())
      prompt_texts_.back() = context_.engine.text()->decode(prompt_ids_.back(), false);
  }
  unfinished_ = requests.size() * static_cast<size_t>(call_.sampling.n);
  choices_.resize(unfinished_);
  for (Choice& choice : choices_) {
    if (call_.chat && call_.separate_reasoning) choice.splitter = ReasoningSplitter(context_.reasoning);
  }
  prompt_logprobs_.resize(requests.size());
  if (call_.stream) exchange_->begin_stream(200, "text/event-stream; charset=utf-8");
  const auto self = shared_from_this();
  for (size_t p = 0; p < requests.size(); ++p) {
    const auto sink = [self, p](Delta&& delta) {
      auto shared = std::make_shared<Delta>(std::move(delta));
      self->context_.replies.post([self, p, shared] { self->take(p, std::move(*shared)); });
    };
    int64_t id = 0;
    try {
      id = context_.thread.submit(std::move(requests[p]), sink);
    } catch (const std::exception&) {
      // The engine has failed; earlier prompts hear of it on the reply thread too, and one answer is enough.
      const std::exception_ptr error = std::current_exception();
      context_.replies.post([self, error] { self->fail(error); });
      break;
    }
    std::lock_guard lock(mutex_);
    submitted_.push_back(id);
  }
  // Set last: it may run at once, and must then know every id.
  exchange_->on_close([self] { self->abort(); });
}

void Reply::abort() {
  std::lock_guard lock(mutex_);
  gone_ = true;
  for (const int64_t id : submitted_) context_.thread.abort(id);
}

void Reply::take(size_t prompt, Delta&& delta) {
  const size_t index = prompt * static_cast<size_t>(call_.sampling.n) + delta.sample;
  Choice& choice = choices_[index];
  note_metrics(prompt, choice, delta);
  for (TokenLogprob& token : delta.prompt_logprobs) prompt_logprobs_[prompt].push_back(std::move(token));
  cached_tokens_ = std::max(cached_tokens_, delta.cached_tokens);
  if (delta.finish == Finish::kError) {
    fail(delta.error);
    return;
  }
  if (delta.finish != Finish::kNone) {
    choice.done = true;
    choice.finish_reason = to_string(delta.finish);
    if (!delta.stop_string.empty())
      choice.stop_reason = delta.stop_string;
    else if (delta.stop_token_id >= 0)
      choice.stop_reason = delta.stop_token_id;
    --unfinished_;
  }
  if (ended_) return;
  if (call_.stream) {
    stream_delta(prompt, index, delta);
  } else {
    const ReasoningSplitter::Parts parts = choice.splitter.push(delta.text, choice.done);
    choice.reasoning += parts.reasoning;
    choice.text += parts.content;
    for (TokenLogprob& token : delta.logprobs) choice.logprobs.push_back(std::move(token));
  }
  if (unfinished_ == 0) finish();
}

void Reply::note_metrics(size_t prompt, Choice& choice, const Delta& delta) {
  const auto tokens = static_cast<int64_t>(delta.token_ids.size());
  if (tokens > 0) {
    if (choice.tokens == 0) {
      context_.metrics.first_token(seconds(delta.arrival_ns, delta.at_ns),
                                   seconds(delta.arrival_ns, delta.scheduled_ns));
      if (delta.sample == 0) context_.metrics.prompt(static_cast<int64_t>(prompt_ids_[prompt].size()));
    } else {
      context_.metrics.next_token(seconds(choice.last_ns, delta.at_ns));
    }
    choice.last_ns = delta.at_ns;
    choice.tokens += tokens;
    context_.metrics.generated(tokens);
  }
  if (delta.finish != Finish::kNone)
    context_.metrics.request_done(to_string(delta.finish), seconds(delta.arrival_ns, delta.at_ns),
                                  static_cast<int64_t>(prompt_ids_[prompt].size()), choice.tokens);
}

void Reply::event(const Json& json) {
  exchange_->send("data: " + json_text(json) + "\n\n");
}

void Reply::stream_delta(size_t prompt, size_t index, Delta& delta) {
  Choice& choice = choices_[index];
  std::string text = std::move(delta.text);
  std::vector<TokenLogprob> tokens = std::move(delta.logprobs);
  bool first_is_null = false;
  if (!std::exchange(choice.begun, true)) {
    if (call_.chat) {
      Json json = frame();
      json["choices"].push_back({{"index", index},
                                 {"delta", {{"role", "assistant"}, {"content", ""}}},
                                 {"logprobs", nullptr},
                                 {"finish_reason", nullptr}});
      event(json);
    }
    if (call_.score_only) {
      text.clear();
      tokens.clear();
    }
    if (call_.echo) {
      text = prompt_texts_[prompt] + text;
      if (call_.logprobs >= 0) {
        first_is_null = true;
        tokens.insert(tokens.begin(), prompt_logprobs_[prompt].begin(), prompt_logprobs_[prompt].end());
        TokenLogprob first;
        first.token_id = prompt_ids_[prompt].front();
        tokens.insert(tokens.begin(), first);
      }
    }
  }
  Json logprobs = call_.logprobs >= 0 ? logprobs_json(choice, tokens, first_is_null) : Json(nullptr);
  Json json = frame();
  json["choices"].push_back(
      chunk_choice(index, choice.splitter.push(text, choice.done), std::move(logprobs)));
  if (call_.continuous_usage) json["usage"] = usage();
  event(json);
}

Reply::Json Reply::frame() const {
  Json json;
  json["id"] = id_;
  json["object"] = !call_.chat    ? "text_completion"
                   : call_.stream ? "chat.completion.chunk"
                                  : "chat.completion";
  json["created"] = created_;
  json["model"] = model_;
  json["choices"] = Json::array();
  return json;
}

Reply::Json Reply::usage() const {
  int64_t prompt = 0, generated = 0;
  for (const auto& ids : prompt_ids_) prompt += static_cast<int64_t>(ids.size());
  for (const Choice& choice : choices_) generated += call_.score_only ? 0 : choice.tokens;
  Json json;
  json["prompt_tokens"] = prompt;
  json["total_tokens"] = prompt + generated;
  json["completion_tokens"] = generated;
  json["prompt_tokens_details"] = {{"cached_tokens", cached_tokens_}};
  return json;
}

Reply::Json Reply::chunk_choice(size_t index, const ReasoningSplitter::Parts& parts, Json logprobs) const {
  const Choice& choice = choices_[index];
  Json json;
  json["index"] = index;
  if (call_.chat) {
    Json delta = Json::object();
    if (!parts.reasoning.empty()) delta["reasoning_content"] = parts.reasoning;
    // An empty content says that a token came which completed no text yet.
    if (!parts.content.empty() || (parts.reasoning.empty() && !choice.done)) delta["content"] = parts.content;
    json["delta"] = std::move(delta);
  } else {
    json["text"] = parts.content;
  }
  json["logprobs"] = std::move(logprobs);
  json["finish_reason"] = choice.done ? Json(choice.finish_reason) : Json(nullptr);
  if (choice.done) json["stop_reason"] = choice.stop_reason;
  return json;
}

Reply::Json Reply::whole_choice(size_t index) {
  Choice& choice = choices_[index];
  const size_t prompt = index / static_cast<size_t>(call_.sampling.n);
  if (call_.score_only) {
    choice.text.clear();
    choice.logprobs.clear();
  }
  Json json;
  json["index"] = index;
  bool first_is_null = false;
  if (call_.echo && call_.logprobs >= 0) {
    first_is_null = true;
    TokenLogprob first;
    first.token_id = prompt_ids_[prompt].front();
    choice.logprobs.insert(choice.logprobs.begin(), prompt_logprobs_[prompt].begin(),
                           prompt_logprobs_[prompt].end());
    choice.logprobs.insert(choice.logprobs.begin(), first);
  }
  const std::string text = (call_.echo ? prompt_texts_[prompt] : "") + choice.text;
  if (call_.chat) {
    json["message"] = {{"role", "assistant"}, {"content", text}};
    if (!choice.reasoning.empty()) {
      json["message"]["reasoning_content"] = choice.reasoning;
      if (text.empty()) json["message"]["content"] = nullptr;
    }
  } else {
    json["text"] = text;
  }
  json["logprobs"] =
      call_.logprobs >= 0 ? logprobs_json(choice, choice.logprobs, first_is_null) : Json(nullptr);
  json["finish_reason"] = choice.finish_reason;
  json["stop_reason"] = choice.stop_reason;
  if (call_.prompt_logprobs >= 0 && !call_.chat) json["prompt_logprobs"] = prompt_logprobs_json(prompt);
  return json;
}

void Reply::finish() {
  ended_ = true;
  if (!call_.stream) {
    Json json = frame();
    for (size_t i = 0; i < choices_.size(); ++i) json["choices"].push_back(whole_choice(i));
    json["usage"] = usage();
    if (call_.prompt_logprobs >= 0 && call_.chat) json["prompt_logprobs"] = prompt_logprobs_json(0);
    exchange_->respond(200, kJsonType, json_text(json));
    return;
  }
  if (call_.include_usage) {
    Json json = frame();
    json["usage"] = usage();
    event(json);
  }
  exchange_->send("data: [DONE]\n\n");
  exchange_->end();
}

// The first error answers the call; what else it asked for is not needed any more.
void Reply::fail(const std::exception_ptr& error) {
  if (std::exchange(ended_, true)) return;
  abort();
  const ApiError reason = api_error(error);
  const std::string body = error_body(reason.status(), reason.what(), reason.type(), reason.param());
  if (!call_.stream) {
    exchange_->respond(reason.status(), kJsonType, body);
    return;
  }
  exchange_->send("data: " + body + "\n\ndata: [DONE]\n\n");
  exchange_->end();
}

std::string Reply::token_text(int32_t id) const {
  if (call_.tokens_as_ids || !context_.engine.text()) return fmt::format("token_id:{}", id);
  return repair_utf8(context_.engine.text()->token_bytes(id));
}

Reply::Json Reply::completion_logprobs(Choice& choice, const std::vector<TokenLogprob>& tokens,
                                       bool first_is_null) const {
  Json texts = Json::array(), values = Json::array(), tops = Json::array(), offsets = Json::array();
  for (size_t i = 0; i < tokens.size(); ++i) {
    const TokenLogprob& token = tokens[i];
    const bool null = first_is_null && i == 0;
    const std::string text = token_text(token.token_id);
    texts.push_back(text);
    values.push_back(null ? Json(nullptr) : Json(token.logprob));
    Json top = Json::object();
    for (const auto& [id, logprob] : token.top) top[token_text(id)] = logprob;
    if (!null) top[text] = token.logprob;
    tops.push_back(null ? Json(nullptr) : std::move(top));
    offsets.push_back(choice.text_offset);
    choice.text_offset += text.size();
  }
  return {{"tokens", std::move(texts)},
          {"token_logprobs", std::move(values)},
          {"top_logprobs", std::move(tops)},
          {"text_offset", std::move(offsets)}};
}

Reply::Json Reply::logprobs_json(Choice& choice, const std::vector<TokenLogprob>& tokens,
                                 bool first_is_null) const {
  if (!call_.chat) return completion_logprobs(choice, tokens, first_is_null);
  const auto entry = [&](int32_t id, float logprob) {
    Json json;
    json["token"] = token_text(id);
    json["logprob"] = logprob;
    json["bytes"] = Json::array();
    if (context_.engine.text()) {
      for (const char byte : context_.engine.text()->token_bytes(id))
        json["bytes"].push_back(static_cast<unsigned char>(byte));
    }
    return json;
  };
  Json content = Json::array();
  for (const TokenLogprob& token : tokens) {
    Json json = entry(token.token_id, token.logprob);
    json["top_logprobs"] = Json::array();
    for (const auto& [id, logprob] : token.top) json["top_logprobs"].push_back(entry(id, logprob));
    content.push_back(std::move(json));
  }
  return {{"content", std::move(content)}};
}

// vLLM's form: null for the first token, then an object by token id for each.
Reply::Json Reply::prompt_logprobs_json(size_t prompt) const {
  Json rows = Json::array({nullptr});
  for (const TokenLogprob& token : prompt_logprobs_[prompt]) {
    Json row = Json::object();
    const auto add = [&](int32_t id, float logprob) {
      row[std::to_string(id)] = {{"logprob", logprob}, {"decoded_token", token_text(id)}};
    };
    add(token.token_id, token.logprob);
    for (const auto& [id, logprob] : token.top) add(id, logprob);
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace duet
