#include "cli/prompts.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json_text.h"
#include "cli/flags.h"
#include "cli/usage_error.h"

namespace duet {
namespace {

using json = nlohmann::ordered_json;  // the order of a message's keys shows in templates that print tools

Prompt text_prompt(const std::string& text, bool chat) {
  Prompt prompt;
  if (chat) {
    prompt.messages_json = json_text(json::array({{{"role", "user"}, {"content", text}}}));
  } else {
    prompt.text = text;
  }
  return prompt;
}

[[noreturn]] void bad_line(const std::string& where, const std::string& what) {
  throw Error(ErrorKind::kInvalidArgument, fmt::format("{}: {}", where, what));
}

std::vector<int32_t> ids_from_json(const json& value, const std::string& where) {
  if (!value.is_array() || value.empty()) {
    bad_line(where, "\"prompt_token_ids\" must be a list of token ids that is not empty");
  }
  std::vector<int32_t> ids;
  ids.reserve(value.size());
  for (const json& id : value) {
    if (!id.is_number_integer() || id < 0 || id > std::numeric_limits<int32_t>::max()) {
      bad_line(where, fmt::format("\"prompt_token_ids\" holds {}; expected token ids, 0 or more",
                                  json_text(id, -1, true).substr(0, 40)));
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

}  // namespace

Prompt parse_prompt_line(const std::string& line, const std::string& where, bool chat) {
  json row = try_ordered_json(line);
  if (row.is_discarded() || !row.is_object()) bad_line(where, "not a JSON object");
  constexpr const char* kWays[] = {"prompt", "prompt_token_ids", "messages"};
  std::string way;
  for (const char* name : kWays) {
    // null counts as absent: a result line of token ids has "prompt": null and is an input again.
    if (!row.contains(name) || row[name].is_null()) continue;
    if (!way.empty()) bad_line(where, fmt::format("both \"{}\" and \"{}\"; give one", way, name));
    way = name;
  }
  if (way.empty())
    bad_line(where, "none of \"prompt\", \"prompt_token_ids\", \"messages\"; expected one of them");
  Prompt prompt;
  if (way == "prompt") {
    if (!row["prompt"].is_string()) bad_line(where, "\"prompt\" must be a string");
    prompt = text_prompt(row["prompt"].get<std::string>(), chat);
  } else if (way == "prompt_token_ids") {
    prompt.token_ids = ids_from_json(row[way], where);
  } else {
    if (!row[way].is_array() || row[way].empty()) {
      bad_line(where, "\"messages\" must be a list of {\"role\", \"content\"} that is not empty");
    }
    prompt.messages_json = json_text(row[way]);
  }
  return prompt;
}

std::vector<Prompt> read_prompts(const std::string& path, bool chat) {
  const bool lines_of_json = path.ends_with(".jsonl");
  if (!lines_of_json && !path.ends_with(".txt")) {
    throw UsageError(fmt::format("--prompts {}: expected a file whose name ends in .txt or .jsonl", path));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(ErrorKind::kNotFound, fmt::format("cannot read the prompts file {}", path));
  std::vector<Prompt> prompts;
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (line.ends_with('\r')) line.pop_back();
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    prompts.push_back(lines_of_json ? parse_prompt_line(line, fmt::format("{}:{}", path, number), chat)
                                    : text_prompt(line, chat));
  }
  if (file.bad())
    throw Error(ErrorKind::kCorrupt, fmt::format("cannot read the prompts file {} to its end", path));
  if (prompts.empty()) throw Error(ErrorKind::kInvalidArgument, fmt::format("{} holds no prompt", path));
  return prompts;
}

std::vector<Prompt> prompts_from_flags(const Flags& flags, bool chat) {
  constexpr const char* kWays[] = {"prompt", "prompts", "prompt-token-ids"};
  std::string way;
  for (const Flags::Source source : {Flags::Source::kCommandLine, Flags::Source::kEnvironment}) {
    for (const char* name : kWays) {
      if (flags.source(name) != source) continue;
      if (!way.empty()) {
        throw UsageError(
            fmt::format("{} and {} are both given; give one", flags.shown(way), flags.shown(name)));
      }
      way = name;
    }
    if (!way.empty()) break;
  }
  if (way.empty()) {
    throw UsageError(flags.verb().bit == kGenerate
                         ? "no prompt; give --prompt TEXT, --prompts FILE or --prompt-token-ids 0,5,7"
                         : "no prompt; give --prompts FILE or --prompt-token-ids 0,5,7");
  }
  if (way == "prompts") return read_prompts(flags.text(way), chat);
  std::vector<Prompt> prompts;
  for (const std::string& value : flags.list(way)) {
    if (way == "prompt") {
      prompts.push_back(text_prompt(value, chat));
    } else {
      Prompt prompt;
      prompt.token_ids = parse_token_ids(value, flags.shown(way));
      prompts.push_back(std::move(prompt));
    }
  }
  return prompts;
}

bool only_token_ids(const std::vector<Prompt>& prompts) {
  return std::all_of(prompts.begin(), prompts.end(), [](const Prompt& p) { return !p.token_ids.empty(); });
}

}  // namespace duet
