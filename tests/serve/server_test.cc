// The server as its clients see it: a real engine (models/kjv-8m) behind a real socket on loopback.
#include "serve/server.h"
#include "base/json_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <thread>

#include "serve/client.h"
#include "text/utf8.h"

namespace duet {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

class ServerTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    LlmOptions o;
    o.model = std::string(DUET_MODELS) + "/kjv-8m";
    o.dtype = "float32";
    o.comm_dtype = "f32";
    o.tensor_parallel_size = 2;
    o.threads = 1;
    o.dbo = "off";
    o.kv_cache_memory = "32MiB";
    o.enable_prefix_caching = true;
    engine_ = Engine::start(o, {}).release();
  }
  static void TearDownTestSuite() {
    delete engine_;
    engine_ = nullptr;
  }
  void SetUp() override { start({}); }
  void start(ServerOptions options) {
    options.http.port = 0;
    options.served_names = {"kjv", "other"};
    options.version = "1.2.3";
    server_.reset();
    server_ = std::make_unique<Server>(*engine_, options);
  }
  HttpAnswer call(const std::string& method, const std::string& path, const std::string& body = "",
                  const std::string& headers = "") {
    return TestClient(server_->port()).call(method, path, body, headers);
  }
  HttpAnswer post(const std::string& path, const json& body) { return call("POST", path, json_text(body)); }
  double metric(const std::string& name) {
    const std::string page = "\n" + call("GET", "/metrics").body;
    const size_t at = page.find("\n" + name + "{");
    return at == std::string::npos ? -1 : std::atof(page.c_str() + page.find("} ", at) + 2);
  }
  // Within bounded time, for what another thread is about to do.
  static bool soon(const std::function<bool()>& what) {
    for (int i = 0; i < 500; ++i) {
      if (what()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return false;
  }

  static inline Engine* engine_ = nullptr;
  std::unique_ptr<Server> server_;
};

json greedy(int tokens) {
  json body;
  body["model"] = "kjv";
  body["prompt"] = "In the beginning God";
  body["max_tokens"] = tokens;
  body["temperature"] = 0;
  body["ignore_eos"] = true;
  return body;
}

json one_message(const json& content, const std::string& role = "user") {
  json message;
  message["role"] = role;
  message["content"] = content;
  return json::array({message});
}

TEST_F(ServerTest, SmallEndpoints) {
  EXPECT_EQ(call("GET", "/health").status, 200);
  EXPECT_EQ(call("GET", "/ping").status, 200);
  EXPECT_EQ(call("POST", "/ping").status, 200);
  EXPECT_EQ(call("GET", "/version").json()["version"], "1.2.3");
  const json models = call("GET", "/v1/models").json();
  EXPECT_EQ(models["data"][0]["id"], "kjv");
  EXPECT_EQ(models["data"][1]["id"], "other");
  EXPECT_EQ(models["data"][0]["max_model_len"], 4096);
  EXPECT_EQ(call("GET", "/v1/models/other").json()["id"], "other");
  EXPECT_EQ(call("GET", "/v1/models/none").status, 404);
  EXPECT_EQ(call("GET", "/nothing").status, 404);
  EXPECT_EQ(call("DELETE", "/v1/models").status, 405);
  const json tokens = post("/tokenize", {{"prompt", "In the beginning"}, {"return_token_strs", true}}).json();
  EXPECT_EQ(tokens["count"], tokens["tokens"].size());
  EXPECT_EQ(tokens["count"], tokens["token_strs"].size());
  EXPECT_THAT(post("/detokenize", {{"tokens", tokens["tokens"]}}).json()["prompt"].get<std::string>(),
              HasSubstr("In the beginning"));
  EXPECT_GT(post("/tokenize", {{"messages", one_message("Hi")}}).json()["count"].get<int>(), 1);
}

TEST_F(ServerTest, StepsAndPage) {
  post("/v1/completions", greedy(3));
  const json steps = call("GET", "/debug/steps").json()["steps"];
  ASSERT_GE(steps.size(), 3u);
  const json& last = steps.back();
  EXPECT_EQ(last["tokens"], 1);
  EXPECT_EQ(last["micro_batches"], 1);
  EXPECT_EQ(last["decision"], "off");
  for (const char* lane : {"compute", "comm"}) {
    ASSERT_FALSE(last["lanes"][lane].empty()) << lane;
    int64_t before = 0;
    for (const json& stage : last["lanes"][lane]) {
      EXPECT_GE(stage[1].get<int64_t>(), before);  // a lane does one thing at a time
      EXPECT_GE(stage[2].get<int64_t>(), stage[1].get<int64_t>());
      before = stage[2].get<int64_t>();
    }
  }
  const std::string metrics = call("GET", "/metrics").body;
  EXPECT_THAT(metrics,
              HasSubstr("duet:lane_busy_seconds_total{model_name=\"kjv\",engine=\"0\",lane=\"comm\"} "));
  EXPECT_THAT(metrics, HasSubstr("reason=\"off\"} "));
  const HttpAnswer page = call("GET", "/");
  EXPECT_EQ(page.status, 200);
  EXPECT_THAT(page.head, HasSubstr("text/html"));
  EXPECT_THAT(page.body, HasSubstr("debug/steps"));
  EXPECT_THAT(page.body, ::testing::Not(HasSubstr("src=")));  // nothing from elsewhere
}

TEST_F(ServerTest, ReasoningIsSplitFromTheAnswer) {
  ServerOptions options;
  options.reasoning = ReasoningStyle::kDeepSeekR1;
  start(options);
  json body;
  body["messages"] = one_message("Who made heaven?");
  body["temperature"] = 0;
  body["max_tokens"] = 12;
  body["ignore_eos"] = true;
  // This model never ends its thoughts, so all is reasoning.
  const json thought = post("/v1/chat/completions", body).json()["choices"][0]["message"];
  EXPECT_TRUE(thought["content"].is_null());
  ASSERT_TRUE(thought.contains("reasoning_content")) << thought;
  json streamed = body;
  streamed["stream"] = true;
  std::string reasoning;
  for (const json& event : events_of(post("/v1/chat/completions", streamed).body))
    reasoning += event["choices"][0]["delta"].value("reasoning_content", "");
  EXPECT_EQ(reasoning, thought["reasoning_content"]);
  body["include_reasoning"] = false;
  EXPECT_EQ(post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"], reasoning);
}

TEST_F(ServerTest, CompletionWholeAndStreamedAreTheSameText) {
  json body = greedy(24);
  const json whole = post("/v1/completions", body).json();
  ASSERT_TRUE(whole.contains("choices")) << whole;
  EXPECT_EQ(whole["object"], "text_completion");
  EXPECT_EQ(whole["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(whole["usage"]["completion_tokens"], 24);
  const std::string text = whole["choices"][0]["text"];
  EXPECT_FALSE(text.empty());
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  const std::vector<json> events = events_of(post("/v1/completions", body).body);
  ASSERT_GT(events.size(), 2u);
  std::string streamed;
  for (const json& e : events) {
    if (e["choices"].empty()) continue;
    const std::string piece = e["choices"][0]["text"];
    EXPECT_TRUE(is_valid_utf8(piece));
    streamed += piece;
  }
  EXPECT_EQ(streamed, text);
  EXPECT_EQ(events.back()["usage"]["completion_tokens"], 24);
  EXPECT_EQ(events[events.size() - 2]["choices"][0]["finish_reason"], "length");
}

TEST_F(ServerTest, Chat) {
  json part;
  part["type"] = "text";
  part["text"] = "Who made heaven?";
  json body;
  body["messages"] = one_message(json::array({part}));
  body["max_completion_tokens"] = 12;
  body["temperature"] = 0;
  body["ignore_eos"] = true;
  body["logprobs"] = true;
  body["top_logprobs"] = 2;
  const json whole = post("/v1/chat/completions", body).json();
  ASSERT_TRUE(whole.contains("choices")) << whole;
  const json choice = whole["choices"][0];
  EXPECT_EQ(choice["message"]["role"], "assistant");
  ASSERT_EQ(choice["logprobs"]["content"].size(), 12u);
  const json first = choice["logprobs"]["content"][0];
  ASSERT_EQ(first["top_logprobs"].size(), 2u);
  EXPECT_EQ(first["top_logprobs"][0]["token"], first["token"]) << "greedy takes the likeliest";
  body["stream"] = true;
  std::string streamed;
  const std::vector<json> events = events_of(post("/v1/chat/completions", body).body);
  ASSERT_GT(events.size(), 2u);
  EXPECT_EQ(events[0]["choices"][0]["delta"]["role"], "assistant");
  for (const json& e : events) streamed += e["choices"][0]["delta"].value("content", "");
  EXPECT_EQ(streamed, choice["message"]["content"]);
  EXPECT_EQ(events.back()["choices"][0]["finish_reason"], "length");
}

TEST_F(ServerTest, ManyPromptsAndContinuationsKeepTheirOrder) {
  json body = greedy(6);
  body["prompt"] = {"In the beginning", "And God said", "Blessed are"};
  body["temperature"] = 1.0;
  body["n"] = 2;
  body["seed"] = 7;
  const json both = post("/v1/completions", body).json();
  ASSERT_EQ(both["choices"].size(), 6u) << both;
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(both["choices"][i]["index"], i);
  EXPECT_NE(both["choices"][0]["text"], both["choices"][1]["text"]);
  body["prompt"] = "And God said";
  const json alone = post("/v1/completions", body).json();
  EXPECT_EQ(alone["choices"][0]["text"], both["choices"][2]["text"])
      << "same seed, whatever shares the batch";
  EXPECT_EQ(alone["choices"][1]["text"], both["choices"][3]["text"]);
}

TEST_F(ServerTest, StopEchoAndLogprobs) {
  json body = greedy(24);
  const std::string text = post("/v1/completions", body).json()["choices"][0]["text"];
  const std::string stop = text.substr(text.size() / 2, 6);  // wherever token borders are
  body["stop"] = {stop};
  const json stopped = post("/v1/completions", body).json();
  EXPECT_EQ(stopped["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(stopped["choices"][0]["stop_reason"], stop);
  EXPECT_EQ(stopped["choices"][0]["text"], text.substr(0, text.find(stop)));
  body.erase("stop");
  body["max_tokens"] = 0;
  body["echo"] = true;
  body["logprobs"] = 1;
  const json scored = post("/v1/completions", body).json();
  ASSERT_TRUE(scored.contains("choices")) << scored;
  EXPECT_EQ(scored["choices"][0]["text"], "In the beginning God");
  const json logprobs = scored["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["tokens"].size(), scored["usage"]["prompt_tokens"]);
  EXPECT_TRUE(logprobs["token_logprobs"][0].is_null());
  EXPECT_LT(logprobs["token_logprobs"][1].get<double>(), 0);
}

TEST_F(ServerTest, WhatIsWrongIsNamed) {
  const auto refused = [&](const std::string& field, const json& value, bool chat = false,
                           std::string param = "") {
    json body = greedy(2);
    if (chat) body = {{"messages", one_message("Hi")}};
    body[field] = value;
    if (param.empty()) param = field;
    const HttpAnswer answer = post(chat ? "/v1/chat/completions" : "/v1/completions", body);
    EXPECT_EQ(answer.status, 400) << body;
    const json error = answer.json();
    ASSERT_TRUE(error.contains("error")) << answer.body;
    EXPECT_EQ(error["error"]["param"], param) << answer.body;
    EXPECT_THAT(error["error"]["message"].get<std::string>(), HasSubstr(param)) << answer.body;
    EXPECT_EQ(error["error"]["type"], "invalid_request_error");
  };
  refused("temperature", -1);
  refused("temperature", "hot");
  refused("top_p", 0);
  refused("n", 0);
  refused("max_tokens", 5000);
  refused("max_tokens", 1.5);
  refused("best_of", 2);
  refused("suffix", "end");
  refused("logprobs", 21);
  refused("logit_bias", {{"x", 1}});
  refused("stop", 5);
  refused("prompt", json::array());
  refused("prompt", json::array({1, -2}));
  refused("prompt", json::array({99999999}));
  refused("stream_options", {{"include_usage", true}});
  refused("never_heard_of", 1);
  refused("response_format", {{"type", "json_object"}}, true);
  refused("tools", json::array({{{"type", "function"}}}), true);
  refused("top_logprobs", 2, true);
  refused("messages", json::array(), true);
  refused("messages", one_message(json::array({{{"type", "image_url"}}})), true, "messages.0.content");
  refused("messages", one_message("x", "king"), true, "messages.0.role");
  json body = greedy(2);
  body["model"] = "gpt";
  EXPECT_EQ(post("/v1/completions", body).status, 404);
}

TEST_F(ServerTest, MalformedBodiesAndRequestsAreAnswered) {
  const std::vector<std::string> bodies = {"",
                                           "{",
                                           "[]",
                                           "nul",
                                           "{\"prompt\": \"\xff\"}",
                                           "{\"prompt\": 1e999}",
                                           std::string(100000, '['),
                                           "{\"a\":" + std::string(5000, '{'),
                                           std::string("\0\0", 2),
                                           "{\"prompt\": \"\\ud800\"}"};
  for (const std::string& body : bodies) {
    const HttpAnswer answer = call("POST", "/v1/completions", body);
    EXPECT_EQ(answer.status, 400) << body.substr(0, 40);
    EXPECT_THAT(answer.body, HasSubstr("\"error\""));
  }
  TestClient garbage(server_->port());
  garbage.send_raw("\x16\x03\x01 no HTTP\r\n\r\n");
  EXPECT_EQ(garbage.answer().status, 400);
  TestClient wide(server_->port());
  wide.send_raw("GET / HTTP/1.1\r\nX: " + std::string(70000, 'x') + "\r\n\r\n");
  EXPECT_EQ(wide.answer().status, 431);
  EXPECT_EQ(call("GET", "/health").status, 200);
}

TEST_F(ServerTest, LargeBodiesAreRefusedChunkedOnesTaken) {
  const HttpAnswer answer = call("POST", "/v1/completions", std::string(30u << 20, ' '));
  EXPECT_EQ(answer.status, 413);
  EXPECT_THAT(answer.body, HasSubstr("--max-request-bytes"));
  TestClient chunked(server_->port());
  chunked.send_raw("POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(chunked.answer().status, 100);
  chunked.send_raw("f\r\n{\"prompt\": \"In\"\r\n1\r\n}\r\n0\r\n\r\n");
  EXPECT_EQ(chunked.answer().status, 200);
}

TEST_F(ServerTest, KeepAliveAndPipelining) {
  TestClient client(server_->port());
  for (int i = 0; i < 3; ++i) EXPECT_EQ(client.call("GET", "/version").status, 200);
  client.send_raw("GET /version HTTP/1.1\r\n\r\nGET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(client.answer().body, HasSubstr("1.2.3"));
  EXPECT_THAT(client.answer().head, HasSubstr("Connection: close"));
}

TEST_F(ServerTest, SlowHeadersAreCutOff) {
  ServerOptions options;
  options.http.limits.header_ns = 300'000'000;
  start(options);
  TestClient slow(server_->port());
  slow.send_raw("GET / HT");
  EXPECT_EQ(slow.answer().status, 408);
  TestClient silent(server_->port());
  EXPECT_FALSE(silent.read_until("x")) << "closed without a word";
}

TEST_F(ServerTest, AClientThatHangsUpFreesItsBlocks) {
  for (const bool stream : {false, true}) {
    TestClient client(server_->port());
    json body = greedy(4000);
    body["stream"] = stream;
    client.send_request("POST", "/v1/completions", json_text(body));
    if (stream) {
      ASSERT_TRUE(client.read_until("data: "));
    }
    ASSERT_TRUE(soon([&] { return metric("duet:kv_blocks_used") > 0; }));
    client.hang_up();
    EXPECT_TRUE(soon([&] { return metric("duet:kv_blocks_used") == 0; }));
    EXPECT_TRUE(soon([&] { return metric("duet:live_requests") == 0; }));
  }
  EXPECT_LT(metric("vllm:generation_tokens_total"), 7900);
}

TEST_F(ServerTest, KeysOriginsAndQueue) {
  ServerOptions options;
  options.api_keys = {"secret", "second"};
  options.max_waiting = 0;
  start(options);
  EXPECT_EQ(call("GET", "/v1/models").status, 401);
  EXPECT_EQ(call("GET", "/v1/models", "", "Authorization: Bearer secre\r\n").status, 401);
  EXPECT_EQ(call("GET", "/v1/models", "", "Authorization: Bearer second\r\n").status, 200);
  EXPECT_EQ(call("GET", "/health").status, 200) << "needs no key";
  const HttpAnswer preflight = call("OPTIONS", "/v1/models", "", "Origin: http://a\r\n");
  EXPECT_EQ(preflight.status, 204);
  EXPECT_THAT(preflight.head, HasSubstr("Access-Control-Allow-Origin: *"));
  const HttpAnswer full =
      call("POST", "/v1/completions", json_text(greedy(1)), "Authorization: Bearer secret\r\n");
  EXPECT_EQ(full.status, 429);
  EXPECT_THAT(full.head, HasSubstr("Retry-After: 1"));
}

TEST_F(ServerTest, ManyClientsAtOnceGetWhatEachGetsAlone) {
  const auto text_with = [&](size_t seed) {
    json body = greedy(16);
    body["temperature"] = 1.0;
    body["seed"] = seed;
    const json answer = post("/v1/completions", body).json();
    return answer.contains("choices") ? answer["choices"][0]["text"].get<std::string>() : json_text(answer);
  };
  std::vector<std::string> alone, found(24);
  for (size_t i = 0; i < 4; ++i) alone.push_back(text_with(i));
  std::vector<std::thread> clients;
  for (size_t c = 0; c < found.size(); ++c) clients.emplace_back([&, c] { found[c] = text_with(c % 4); });
  for (std::thread& client : clients) client.join();
  for (size_t c = 0; c < found.size(); ++c) EXPECT_EQ(found[c], alone[c % 4]) << c;
  EXPECT_EQ(metric("vllm:time_to_first_token_seconds_count"), 28);
  EXPECT_TRUE(soon([&] { return metric("duet:kv_blocks_used") == 0; }));
}

TEST_F(ServerTest, ShutdownEndsStreamsProperly) {
  TestClient client(server_->port());
  json body = greedy(4000);
  body["stream"] = true;
  client.send_request("POST", "/v1/completions", json_text(body));
  ASSERT_TRUE(client.read_until("data: "));
  const int port = server_->port();
  server_->shut_down(0.1);
  const std::vector<json> events = events_of(client.answer().body);
  ASSERT_FALSE(events.empty());
  EXPECT_EQ(events.back()["choices"][0]["finish_reason"], "abort");
  EXPECT_FALSE(TestClient(port).connected());
}

}  // namespace
}  // namespace duet
