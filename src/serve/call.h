// A generation call of the API, checked: what /v1/completions and /v1/chat/completions have in common and
// where they differ. Made from the body by parse_completion and parse_chat, executed by Reply.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "duet/llm.h"

namespace duet {

struct Call {
  bool chat = false;
  std::string model;            // empty: the first served name
  std::vector<Prompt> prompts;  // one for a chat
  SamplingParams sampling;
  std::optional<int64_t> max_tokens;
  bool stream = false, include_usage = false, continuous_usage = false;
  bool echo = false;
  bool score_only = false;     // max_tokens 0 with echo: the prompt's logprobs and nothing else
  int logprobs = -1;           // alternatives to show; −1: no logprobs at all
  int prompt_logprobs = -1;    // vLLM's field, not echo's
  bool tokens_as_ids = false;  // "token_id:17" instead of text
  bool separate_reasoning = true;
};

struct CallLimits {
  int max_logprobs = 20;
  int max_n = 128;
  int max_prompts = 1024;
};

/// Throw ApiError naming the field.
Call parse_completion(const nlohmann::ordered_json& body, const CallLimits& limits);
Call parse_chat(const nlohmann::ordered_json& body, const CallLimits& limits);
/// The chat messages of a body, checked, as JSON text for the template.
std::string parse_messages(const nlohmann::ordered_json& messages);

}  // namespace duet
