#include "serve/server.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/json_text.h"
#include "serve/api_error.h"
#include "serve/fields.h"
#include "serve/page.h"
#include "serve/reply.h"

namespace duet {

namespace {

using Json = nlohmann::ordered_json;
// Two threads parse and tokenise: a long prompt does not hold up a short one.
constexpr int kWorkers = 2;

void answer_error(const std::shared_ptr<Exchange>& exchange, const ApiError& error) {
  HttpHeaders headers;
  if (error.retry_after > 0) headers.emplace_back("Retry-After", std::to_string(error.retry_after));
  if (error.status() == 401) headers.emplace_back("WWW-Authenticate", "Bearer");
  exchange->respond(error.status(), kJsonType,
                    error_body(error.status(), error.what(), error.type(), error.param()), headers);
}

// Time does not tell how much of a key was right.
bool same_secret(const std::string& a, const std::string& b) {
  unsigned char difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size(); ++i)
    difference |= static_cast<unsigned char>(a[i] ^ (b.empty() ? 0 : b[i % b.size()]));
  return difference == 0;
}

}  // namespace

Server::Server(Engine& engine, ServerOptions options)
    : engine_(engine),
      options_(std::move(options)),
      created_(std::time(nullptr)),
      metrics_(options_.served_names.empty() ? engine.options().model : options_.served_names.front()) {
  if (options_.served_names.empty()) options_.served_names.push_back(engine.options().model);
  replies_ = std::make_unique<WorkQueue>(1);
  thread_ = std::make_unique<EngineThread>(
      engine, [this](const Step& step, const StepResult& result) { steps_.note(step, result); });
  workers_ = std::make_unique<WorkQueue>(kWorkers);
  http_ = std::make_unique<HttpServer>(
      options_.http, [this](const std::shared_ptr<Exchange>& exchange) { handle(exchange); });
}

Server::~Server() {
  http_.reset();
  workers_.reset();
  thread_.reset();
  replies_.reset();
}

void Server::shut_down(double seconds) {
  stopping_ = true;
  http_->stop_accepting();
  const int64_t deadline = now_ns() + static_cast<int64_t>(seconds * 1e9);
  const auto wait = [&](int64_t until) {
    while (live_ > 0 && now_ns() < until) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  };
  wait(deadline);
  if (live_ > 0) thread_->abort_all();
  wait(now_ns() + 5'000'000'000);
  // The last bytes of replies are still on their way to the sockets.
  const int64_t flush = now_ns() + 2'000'000'000;
  while (http_->connections() > 0 && now_ns() < flush)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

std::string Server::failure() const {
  {
    std::lock_guard lock(mutex_);
    if (!given_up_.empty()) return given_up_;
  }
  return thread_->failure();
}

void Server::give_up(const std::string& why) {
  std::vector<std::weak_ptr<Reply>> replies;
  {
    std::lock_guard lock(mutex_);
    given_up_ = why;
    replies.swap(under_way_);
  }
  http_->stop_accepting();
  const std::exception_ptr error = std::make_exception_ptr(Error(ErrorKind::kPeer, why));
  for (const std::weak_ptr<Reply>& weak : replies) {
    if (const std::shared_ptr<Reply> reply = weak.lock())
      replies_->post([reply, error] { reply->fail(error); });
  }
  const int64_t until = now_ns() + 3'000'000'000;
  while (http_->connections() > 0 && now_ns() < until)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

void Server::handle(const std::shared_ptr<Exchange>& exchange) {
  workers_->post([this, exchange] { answer(exchange); });
}

void Server::answer(const std::shared_ptr<Exchange>& exchange) {
  const HttpRequest& request = exchange->request();
  try {
    add_cors(exchange);
    if (request.method == "OPTIONS") {
      exchange->respond(204, "", "", {{"Allow", "GET, POST, OPTIONS"}});
      return;
    }
    check_key(request);
    if (request.method == "GET" || request.method == "HEAD") {
      if (!answer_get(exchange)) throw ApiError(404, fmt::format("there is no {} here", request.path));
    } else if (request.method == "POST") {
      answer_post(exchange);
    } else {
      throw ApiError(405, fmt::format("{} is not supported, GET and POST are", request.method));
    }
  } catch (...) {
    const ApiError error = api_error(std::current_exception());
    if (!exchange->begun()) {
      answer_error(exchange, error);
    } else {
      exchange->send("data: " + error_body(error.status(), error.what()) + "\n\n");
      exchange->end();
    }
  }
}

void Server::check_key(const HttpRequest& request) const {
  if (options_.api_keys.empty() || !request.path.starts_with("/v1")) return;
  const std::string* given = request.header("authorization");
  if (given && given->starts_with("Bearer ")) {
    for (const std::string& key : options_.api_keys) {
      if (same_secret(given->substr(7), key)) return;
    }
  }
  throw ApiError(401, "the API key is missing or wrong; send it as: Authorization: Bearer KEY");
}

void Server::add_cors(const std::shared_ptr<Exchange>& exchange) const {
  const std::string* origin = exchange->request().header("origin");
  if (!origin || origin->find_first_of("\r\n") != std::string::npos) return;
  const bool any = std::find(options_.allowed_origins.begin(), options_.allowed_origins.end(), "*") !=
                   options_.allowed_origins.end();
  if (!any && std::find(options_.allowed_origins.begin(), options_.allowed_origins.end(), *origin) ==
                  options_.allowed_origins.end())
    return;
  exchange->add_header("Access-Control-Allow-Origin", any && !options_.allow_credentials ? "*" : *origin);
  exchange->add_header("Vary", "Origin");
  if (options_.allow_credentials) exchange->add_header("Access-Control-Allow-Credentials", "true");
  if (exchange->request().method != "OPTIONS") return;
  exchange->add_header("Access-Control-Allow-Methods", "GET, POST, OPTIONS");
  exchange->add_header("Access-Control-Allow-Headers", "authorization, content-type");
  exchange->add_header("Access-Control-Max-Age", "600");
}

bool Server::answer_get(const std::shared_ptr<Exchange>& exchange) {
  const std::string& path = exchange->request().path;
  if (path == "/health" || path == "/ping") {
    if (const std::string why = failure(); !why.empty()) throw ApiError(503, "the engine has failed: " + why);
    if (stopping_) throw ApiError(503, "the server is shutting down");
    exchange->respond(200, kJsonType, "{}");
  } else if (path == "/version") {
    exchange->respond(200, kJsonType, json_text(Json{{"version", options_.version}}));
  } else if (path == "/metrics") {
    exchange->respond(200, "text/plain; version=0.0.4; charset=utf-8",
                      metrics_.text(thread_->load(), steps_.sums(), http_->connections(), live_));
  } else if (path == "/") {
    exchange->respond(200, "text/html; charset=utf-8", kPage);
  } else if (path == "/debug/steps") {
    exchange->respond(200, kJsonType, steps_.json());
  } else if (path == "/v1/models") {
    exchange->respond(200, kJsonType, models());
  } else if (path.starts_with("/v1/models/")) {
    const std::string name = checked_model(path.substr(11));
    const Json all = read_ordered_json(models());
    for (const Json& model : all["data"]) {
      if (model["id"] == name) exchange->respond(200, kJsonType, json_text(model));
    }
  } else {
    return false;
  }
  return true;
}

void Server::answer_post(const std::shared_ptr<Exchange>& exchange) {
  const HttpRequest& request = exchange->request();
  if (request.path == "/v1/completions") {
    generate(exchange, false);
  } else if (request.path == "/v1/chat/completions") {
    generate(exchange, true);
  } else if (request.path == "/tokenize") {
    exchange->respond(200, kJsonType, tokenize(request.body));
  } else if (request.path == "/detokenize") {
    exchange->respond(200, kJsonType, detokenize(request.body));
  } else if (request.path == "/ping") {
    answer_get(exchange);
  } else {
    throw ApiError(404, fmt::format("there is no {} here", request.path));
  }
}

std::string Server::checked_model(const std::string& name) const {
  if (name.empty()) return options_.served_names.front();
  if (std::find(options_.served_names.begin(), options_.served_names.end(), name) !=
      options_.served_names.end())
    return name;
  throw ApiError(404,
                 fmt::format("the model \"{}\" does not exist; served here: {}", name,
                             fmt::join(options_.served_names, ", ")),
                 "model");
}

void Server::generate(const std::shared_ptr<Exchange>& exchange, bool chat) {
  if (stopping_) {
    ApiError error(503, "the server is shutting down");
    error.retry_after = 5;
    throw error;
  }
  if (const std::string why = failure(); !why.empty()) throw ApiError(503, "the engine has failed: " + why);
  if (thread_->load().waiting >= options_.max_waiting) {
    ApiError error(429, fmt::format("{} requests are waiting already (--max-waiting-requests); try again "
                                    "later",
                                    options_.max_waiting));
    error.retry_after = 1;
    throw error;
  }
  const Json body = parse_body(exchange->request().body);
  Call call = chat ? parse_chat(body, options_.limits) : parse_completion(body, options_.limits);
  const std::string model = checked_model(call.model);
  const ReplyContext context{engine_, *thread_, *replies_, metrics_, live_, options_.reasoning};
  const auto reply = std::make_shared<Reply>(context, std::move(call), model, exchange);
  {
    std::lock_guard lock(mutex_);
    std::erase_if(under_way_, [](const std::weak_ptr<Reply>& other) { return other.expired(); });
    under_way_.push_back(reply);
  }
  reply->start();
}

std::string Server::models() const {
  Json data = Json::array();
  for (const std::string& name : options_.served_names) {
    Json model;
    model["id"] = name;
    model["object"] = "model";
    model["created"] = created_;
    model["owned_by"] = "duet";
    model["root"] = engine_.options().model;
    model["parent"] = nullptr;
    model["max_model_len"] = engine_.info().max_model_len;
    data.push_back(std::move(model));
  }
  return json_text(Json{{"object", "list"}, {"data", std::move(data)}});
}

std::string Server::tokenize(const std::string& text) const {
  const Json body = parse_body(text);
  Fields f(body);
  checked_model(f.text("model").value_or(""));
  Prompt prompt;
  const Json* messages = f.get("messages");
  const auto plain = f.text("prompt");
  if ((messages != nullptr) == plain.has_value())
    bad_field("prompt", "give one of prompt (a string) and messages");
  const auto special = f.boolean("add_special_tokens");
  const auto generation = f.boolean("add_generation_prompt");
  const bool strings = f.boolean("return_token_strs").value_or(false);
  if (messages) {
    prompt.messages_json = parse_messages(*messages);
    prompt.add_generation_prompt = generation.value_or(true);
    if (special.value_or(false))
      bad_field("add_special_tokens", "a chat template writes special tokens itself");
  } else {
    prompt.text = *plain;
    prompt.add_special_tokens = special.value_or(true);
  }
  f.finish("/tokenize");
  const std::vector<int32_t> ids = engine_.tokenize(prompt, nullptr);
  Json json;
  json["count"] = ids.size();
  json["max_model_len"] = engine_.info().max_model_len;
  json["tokens"] = ids;
  if (strings && engine_.text()) {
    json["token_strs"] = Json::array();
    for (const int32_t id : ids) json["token_strs"].push_back(engine_.text()->token_bytes(id));
  }
  return json_text(json);
}

std::string Server::detokenize(const std::string& text) const {
  const Json body = parse_body(text);
  Fields f(body);
  checked_model(f.text("model").value_or(""));
  if (!f.get("tokens")) bad_field("tokens", "tokens is missing");
  const std::vector<int32_t> ids = f.token_ids("tokens");
  f.finish("/detokenize");
  if (!engine_.text()) throw ApiError(400, "the tokenizer was not loaded");
  return json_text(Json{{"prompt", engine_.text()->decode(ids, false)}});
}

}  // namespace duet
