#include "loadgen/openai_client.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string_view>

#include "base/clock.h"
#include "base/error.h"
#include "base/json_text.h"

namespace duet {

namespace {

using Json = nlohmann::ordered_json;

std::string body_of(const OpenAiTarget& target, const LoadRequest& request) {
  Json body;
  body["model"] = target.model;
  if (target.chat) {
    body["messages"] = Json::array({Json{{"role", "user"}, {"content", request.prompt}}});
    body["max_completion_tokens"] = request.output_tokens;
  } else {
    body["prompt"] = request.prompt_ids.empty() ? Json(request.prompt) : Json(request.prompt_ids);
    body["max_tokens"] = request.output_tokens;
  }
  body["temperature"] = target.temperature;
  if (target.top_p < 1) body["top_p"] = target.top_p;
  if (target.top_k > 0) body["top_k"] = target.top_k;
  if (target.logprobs >= 0 && target.chat) {
    body["logprobs"] = true;
    body["top_logprobs"] = target.logprobs;
  } else if (target.logprobs >= 0) {
    body["logprobs"] = target.logprobs;
  }
  if (target.ignore_eos) body["ignore_eos"] = true;
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  return json_text(body);
}

double seconds(int64_t ns) {
  return static_cast<double>(ns) * 1e-9;
}

std::string text_field(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

// Reads server-sent events and times those that carry tokens.
class EventReader {
 public:
  EventReader(LoadResult& result, bool chat) : result_(result), chat_(chat) {}

  void take(std::string_view piece, int64_t at_ns) {
    buffer_ += piece;
    size_t start = 0;
    for (size_t end; (end = buffer_.find('\n', start)) != std::string::npos; start = end + 1) {
      std::string_view line(buffer_.data() + start, end - start);
      if (line.ends_with('\r')) line.remove_suffix(1);
      if (line.starts_with("data:")) event(line.substr(line.starts_with("data: ") ? 6 : 5), at_ns);
    }
    buffer_.erase(0, start);
  }
  int64_t last_ns() const { return last_ns_; }
  int64_t chunks() const { return chunks_; }
  bool done() const { return done_; }

 private:
  void event(std::string_view data, int64_t at_ns) {
    if (data == "[DONE]") {
      done_ = true;
      return;
    }
    const Json reply = try_ordered_json(data);
    if (!reply.is_object()) {
      result_.error = fmt::format("an event that is no JSON: {}", data.substr(0, 200));
      return;
    }
    if (reply.contains("error")) {
      result_.error =
          reply["error"].is_object() ? text_field(reply["error"], "message") : json_text(reply["error"]);
      if (result_.error.empty()) result_.error = "the server reported an error in the stream";
      return;
    }
    if (reply.contains("usage") && reply["usage"].is_object()) {
      result_.prompt_tokens = reply["usage"].value("prompt_tokens", int64_t{0});
      result_.output_tokens = reply["usage"].value("completion_tokens", int64_t{0});
    }
    if (reply.contains("choices") && reply["choices"].is_array() && !reply["choices"].empty())
      choice(reply["choices"][0], at_ns);
  }

  void choice(const Json& choice, int64_t at_ns) {
    std::string text;
    if (chat_) {
      if (!choice.contains("delta") || !choice["delta"].is_object()) return;
      text = text_field(choice["delta"], "content") + text_field(choice["delta"], "reasoning_content");
      // The chunk that only names the role comes before any token.
      if (choice["delta"].contains("role") && text.empty()) return;
    } else {
      text = text_field(choice, "text");
    }
    if (chunks_ == 0)
      result_.ttft = seconds(at_ns - result_.sent_ns);
    else
      result_.itl.push_back(seconds(at_ns - last_ns_));
    last_ns_ = at_ns;
    ++chunks_;
    result_.text += text;
  }

  LoadResult& result_;
  const bool chat_;
  std::string buffer_;
  int64_t last_ns_ = 0, chunks_ = 0;
  bool done_ = false;
};

std::string error_text(int status, const std::string& body) {
  const Json reply = try_ordered_json(body);
  if (reply.is_object() && reply.contains("error") && reply["error"].is_object()) {
    const std::string message = text_field(reply["error"], "message");
    if (!message.empty()) return fmt::format("HTTP {}: {}", status, message);
  }
  return fmt::format("HTTP {}: {}", status, body.substr(0, 200));
}

HttpCall call_of(const OpenAiTarget& target) {
  HttpCall call;
  call.server = target.server;
  call.headers = target.headers;
  call.patience_seconds = target.patience_seconds;
  return call;
}

}  // namespace

LoadResult send_request(const OpenAiTarget& target, const LoadRequest& request) {
  LoadResult result;
  HttpCall call = call_of(target);
  call.method = "POST";
  call.path = target.endpoint;
  call.headers += "Content-Type: application/json\r\n";
  call.body = body_of(target, request);
  std::string failure_body;
  EventReader events(result, target.chat);
  result.sent_ns = now_ns();
  try {
    const int status = http_call(call, [&](int code, std::string_view piece) {
      if (code == 200)
        events.take(piece, now_ns());
      else
        failure_body += piece;
    });
    if (status != 200)
      result.error = error_text(status, failure_body);
    else if (result.error.empty() && events.chunks() == 0)
      result.error = "the stream had no token";
    else if (result.error.empty() && !events.done())
      result.error = "the stream ended without [DONE]";
  } catch (const std::exception& e) {
    result.error = e.what();
  }
  result.success = result.error.empty();
  if (events.chunks() > 0) result.latency = seconds(events.last_ns() - result.sent_ns);
  if (result.output_tokens == 0) result.output_tokens = events.chunks();
  if (result.prompt_tokens == 0) result.prompt_tokens = request.prompt_tokens;
  return result;
}

ServedModel first_model(const OpenAiTarget& target) {
  HttpCall call = call_of(target);
  call.path = "/v1/models";
  std::string body;
  const int status = http_call(call, [&](int, std::string_view piece) { body += piece; });
  if (status != 200) throw Error(ErrorKind::kPeer, "GET /v1/models: " + error_text(status, body));
  const Json reply = try_ordered_json(body);
  const bool any = reply.is_object() && reply.contains("data") && reply["data"].is_array() &&
                   !reply["data"].empty() && reply["data"][0].is_object();
  if (!any) throw Error(ErrorKind::kPeer, "GET /v1/models lists no model; give --model");
  return {text_field(reply["data"][0], "id"), text_field(reply["data"][0], "root")};
}

}  // namespace duet
