#include "serve/call.h"

#include <fmt/format.h>

#include <charconv>
#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "serve/api_error.h"
#include "serve/fields.h"

namespace duet {

using Json = nlohmann::ordered_json;

namespace {

void read_logit_bias(Fields& fields, SamplingParams& sampling) {
  const Json* bias = fields.get("logit_bias");
  if (!bias) return;
  if (!bias->is_object()) bad_field("logit_bias", "logit_bias must be an object from token ids to numbers");
  for (const auto& [key, value] : bias->items()) {
    int32_t id = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || !value.is_number())
      bad_field("logit_bias", fmt::format("logit_bias has \"{}\": {}; expected a token id and a number", key,
                                          json_text(value)));
    sampling.logit_bias.emplace_back(id, value.get<double>());
  }
}

void read_sampling(Fields& f, Call& call, const CallLimits& limits) {
  SamplingParams& s = call.sampling;
  s.temperature = f.number("temperature");
  s.top_p = f.number("top_p");
  if (const auto k = f.integer("top_k", -1)) s.top_k = static_cast<int>(*k);
  s.min_p = f.number("min_p");
  s.repetition_penalty = f.number("repetition_penalty");
  s.presence_penalty = f.number("presence_penalty").value_or(0);
  s.frequency_penalty = f.number("frequency_penalty").value_or(0);
  if (const auto seed = f.integer("seed", INT64_MIN, INT64_MAX)) s.seed = static_cast<uint64_t>(*seed);
  s.n = static_cast<int>(f.integer("n", 1, limits.max_n).value_or(1));
  s.min_tokens = static_cast<int>(f.integer("min_tokens", 0).value_or(0));
  s.stop = f.texts("stop");
  s.stop_token_ids = f.token_ids("stop_token_ids");
  s.ignore_eos = f.boolean("ignore_eos").value_or(false);
  s.skip_special_tokens = f.boolean("skip_special_tokens").value_or(true);
  s.include_stop_str_in_output = f.boolean("include_stop_str_in_output").value_or(false);
  read_logit_bias(f, s);
  if (const auto k = f.integer("prompt_logprobs", -1, limits.max_logprobs); k && *k >= 0) {
    call.prompt_logprobs = static_cast<int>(*k);
    s.prompt_logprobs = call.prompt_logprobs;
  }
  call.tokens_as_ids = f.boolean("return_tokens_as_token_ids").value_or(false);
}

void read_stream(Fields& f, Call& call) {
  call.stream = f.boolean("stream").value_or(false);
  const Json* options = f.get("stream_options");
  if (!options) return;
  if (!call.stream) bad_field("stream_options", "stream_options is only allowed with \"stream\": true");
  Fields o(*options, "stream_options.");
  call.include_usage = o.boolean("include_usage").value_or(false);
  call.continuous_usage = o.boolean("continuous_usage_stats").value_or(false);
  o.skip("include_obfuscation");  // padding against observers of the network; there is none
  o.finish("stream_options");
}

// Fields of OpenAI and vLLM that both endpoints know and that Duet has no use for.
void refuse_common(Fields& f) {
  f.skip("user");
  f.skip("request_id");
  f.skip("metadata");
  f.refuse_unless("best_of", {}, "choosing among continuations is not supported; ask for n of them");
  f.refuse_unless("use_beam_search", {false}, "beam search is not supported");
  f.refuse_unless("length_penalty", {1, 1.0}, "it belongs to beam search, which is not supported");
  f.refuse_unless("early_stopping", {false}, "it belongs to beam search, which is not supported");
  f.refuse_unless("spaces_between_special_tokens", {true}, "only true is supported");
  f.refuse_unless("priority", {0}, "requests are served first come, first served");
  f.refuse_unless("truncate_prompt_tokens", {}, "prompts are not truncated");
  f.refuse_unless("bad_words", {Json::array()}, "it is not supported; use logit_bias");
  f.refuse_unless("allowed_token_ids", {}, "it is not supported; use logit_bias");
  f.refuse_unless("store", {false}, "nothing is stored");
  f.refuse_unless("service_tier", {"auto", "default"}, "there is one tier of service");
  const std::string guided = "output that is bound to a format is not supported";
  f.refuse_unless("response_format", {Json{{"type", "text"}}}, guided);
  for (const char* name :
       {"guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"})
    f.refuse_unless(name, {}, guided);
}

void read_prompts(Fields& f, Call& call, const CallLimits& limits) {
  const Json* prompt = f.get("prompt");
  if (!prompt) bad_field("prompt", "prompt is missing; give a string, token ids, or an array of either");
  const bool special = f.boolean("add_special_tokens").value_or(true);
  const auto add_text = [&](const Json& text) {
    Prompt p;
    p.text = text.get<std::string>();
    p.add_special_tokens = special;
    call.prompts.push_back(std::move(p));
  };
  const auto add_ids = [&](const Json& ids) {
    Prompt p;
    p.token_ids = token_ids_of(ids, "prompt");
    if (p.token_ids.empty()) bad_field("prompt", "prompt holds an empty array of token ids");
    call.prompts.push_back(std::move(p));
  };
  if (prompt->is_string()) {
    add_text(*prompt);
    return;
  }
  if (!prompt->is_array() || prompt->empty())
    bad_field("prompt", "prompt must be a string, token ids, or a non-empty array of either");
  if (prompt->front().is_number()) {
    add_ids(*prompt);
    return;
  }
  if (prompt->size() > static_cast<size_t>(limits.max_prompts))
    bad_field("prompt", fmt::format("prompt holds {} prompts, at most {} are taken at once", prompt->size(),
                                    limits.max_prompts));
  for (const Json& item : *prompt) {
    if (item.is_string())
      add_text(item);
    else
      add_ids(item);
  }
}

// The text of one message's content: a string, or an array of text parts, which templates want joined.
Json text_content(const Json& content, size_t index) {
  const std::string field = fmt::format("messages.{}.content", index);
  if (content.is_string() || content.is_null()) return content;
  if (!content.is_array()) bad_field(field, field + " must be a string or an array of parts");
  std::string text;
  for (const Json& part : content) {
    const bool object = part.is_object() && part.contains("type") && part["type"].is_string();
    const std::string type = object ? part["type"].get<std::string>() : "";
    if (type != "text" || !part.contains("text") || !part["text"].is_string())
      bad_field(field, fmt::format("{} holds a part of type \"{}\"; only text is supported, no images, audio "
                                   "or files",
                                   field, type));
    if (!text.empty()) text += "\n";
    text += part["text"].get<std::string>();
  }
  return text;
}

}  // namespace

std::string parse_messages(const Json& messages) {
  if (!messages.is_array() || messages.empty())
    bad_field("messages", "messages must be a non-empty array of messages");
  Json out = Json::array();
  for (size_t i = 0; i < messages.size(); ++i) {
    const Json& message = messages[i];
    const std::string field = fmt::format("messages.{}", i);
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string())
      bad_field(field, fmt::format("{} must be an object with a role", field));
    const std::string role = message["role"].get<std::string>();
    if (role != "system" && role != "user" && role != "assistant" && role != "developer" && role != "tool")
      bad_field(field + ".role",
                fmt::format("{}.role is \"{}\", must be system, user or assistant", field, role));
    if (role == "tool" || (message.contains("tool_calls") && !message["tool_calls"].empty()))
      bad_field(field, fmt::format("{} belongs to a tool call; tools are not supported", field));
    if (!message.contains("content") || (message["content"].is_null() && role != "assistant"))
      bad_field(field + ".content", fmt::format("{}.content is missing", field));
    Json copy = message;
    copy["content"] = text_content(message["content"], i);
    if (copy["content"].is_null()) copy["content"] = "";
    if (role == "developer") copy["role"] = "system";  // OpenAI's newer word for it
    out.push_back(std::move(copy));
  }
  return json_text(out);
}

Call parse_completion(const Json& body, const CallLimits& limits) {
  Fields f(body);
  Call call;
  call.model = f.text("model").value_or("");
  read_prompts(f, call, limits);
  read_sampling(f, call, limits);
  read_stream(f, call);
  call.echo = f.boolean("echo").value_or(false);
  call.max_tokens = f.integer("max_tokens", 0).value_or(16);
  if (*call.max_tokens == 0) {
    if (!call.echo) bad_field("max_tokens", "max_tokens is 0, must be at least 1 (0 goes with echo alone)");
    call.score_only = true;
    call.max_tokens = 1;
  }
  if (const auto k = f.integer("logprobs", 0, limits.max_logprobs)) {
    call.logprobs = static_cast<int>(*k);
    call.sampling.logprobs = call.logprobs;
    if (call.echo) call.sampling.prompt_logprobs = std::max(call.logprobs, call.prompt_logprobs);
  }
  if (call.prompt_logprobs >= 0 && call.stream)
    bad_field("prompt_logprobs", "prompt_logprobs is not available with \"stream\": true");
  refuse_common(f);
  f.refuse_unless("suffix", {""}, "text is continued, not filled in");
  f.finish("/v1/completions");
  return call;
}

Call parse_chat(const Json& body, const CallLimits& limits) {
  Fields f(body);
  Call call;
  call.chat = true;
  call.model = f.text("model").value_or("");
  const Json* messages = f.get("messages");
  if (!messages) bad_field("messages", "messages is missing");
  Prompt prompt;
  prompt.messages_json = parse_messages(*messages);
  prompt.add_generation_prompt = f.boolean("add_generation_prompt").value_or(true);
  if (const Json* variables = f.get("chat_template_kwargs")) {
    if (!variables->is_object()) bad_field("chat_template_kwargs", "chat_template_kwargs must be an object");
    prompt.template_variables_json = json_text(*variables);
  }
  call.prompts.push_back(std::move(prompt));
  read_sampling(f, call, limits);
  read_stream(f, call);
  const auto newer = f.integer("max_completion_tokens", 1);
  const auto older = f.integer("max_tokens", 1);
  call.max_tokens = newer ? newer : older;
  const bool logprobs = f.boolean("logprobs").value_or(false);
  const auto top = f.integer("top_logprobs", 0, limits.max_logprobs);
  if (top && *top > 0 && !logprobs) bad_field("top_logprobs", "top_logprobs needs \"logprobs\": true");
  if (logprobs) {
    call.logprobs = static_cast<int>(top.value_or(0));
    call.sampling.logprobs = call.logprobs;
  }
  if (call.prompt_logprobs >= 0 && call.stream)
    bad_field("prompt_logprobs", "prompt_logprobs is not available with \"stream\": true");
  call.separate_reasoning = f.boolean("include_reasoning").value_or(true);
  refuse_common(f);
  const std::string tools = "tools are not supported";
  f.refuse_unless("tools", {Json::array()}, tools);
  f.refuse_unless("functions", {Json::array()}, tools);
  f.refuse_unless("tool_choice", {"none", "auto"}, tools);
  f.refuse_unless("function_call", {"none", "auto"}, tools);
  f.refuse_unless("parallel_tool_calls", {false, true}, tools);
  f.refuse_unless("modalities", {Json::array({"text"})}, "only text is supported");
  f.refuse_unless("audio", {}, "only text is supported");
  f.refuse_unless("prediction", {}, "predicted outputs are not supported");
  f.refuse_unless("reasoning_effort", {}, "use chat_template_kwargs for what the model's template knows");
  f.refuse_unless("web_search_options", {}, "there is no web search");
  f.refuse_unless("echo", {false}, "a chat's prompt is not repeated");
  f.refuse_unless("continue_final_message", {false}, "it is not supported");
  f.refuse_unless("add_special_tokens", {false}, "the chat template writes special tokens itself");
  f.refuse_unless("documents", {Json::array()},
                  "use chat_template_kwargs for what the model's template knows");
  f.refuse_unless("chat_template", {}, "the template is the server's (--chat-template)");
  f.finish("/v1/chat/completions");
  return call;
}

}  // namespace duet
