#include "loadgen/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "base/error.h"
#include "base/json_text.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace duet {

namespace {

using nlohmann::json;

// Decoding made-up tokens and encoding the text again seldom gives the same number of tokens; a few
// rounds of cutting and filling bring it there, or to within a token.
constexpr int kRounds = 10;
// What vLLM leaves out of ShareGPT: answers and prompts too short to time, and those beyond its room.
constexpr int64_t kShortest = 4, kLongestPrompt = 1024, kLongestTotal = 2048;

std::vector<int32_t> encode_plain(const Tokenizer& tokenizer, const std::string& text) {
  EncodeOptions plain;
  plain.add_special_tokens = false;
  return tokenizer.encode(text, plain);
}

int64_t special_tokens(const Tokenizer& tokenizer) {
  EncodeOptions with;
  with.add_special_tokens = true;
  return static_cast<int64_t>(tokenizer.encode("a", with).size() - encode_plain(tokenizer, "a").size());
}

class RandomPrompts {
 public:
  RandomPrompts(const DatasetOptions& o, const Tokenizer* tokenizer, int64_t vocab_size)
      : options_(o), tokenizer_(tokenizer), random_(o.seed) {
    if (tokenizer) {
      special_ = special_tokens(*tokenizer);
      // Whole characters only, and nothing that means something to the model.
      for (int32_t id = 0; id < tokenizer->vocab_size(); ++id) {
        const std::string_view bytes = tokenizer->token_bytes(id);
        if (!tokenizer->is_added(id) && !bytes.empty() && is_valid_utf8(bytes)) usable_.push_back(id);
      }
    } else {
      for (int32_t id = 0; id < vocab_size; ++id) usable_.push_back(id);
    }
    if (usable_.empty())
      throw Error(ErrorKind::kInvalidArgument,
                  "random prompts need a tokenizer or a config.json with vocab_size; give --tokenizer DIR");
    prefix_ = tokens(o.random_prefix_len);
  }

  LoadRequest next() {
    LoadRequest request;
    const int64_t input = length(options_.random_input_len);
    request.output_tokens = length(options_.random_output_len);
    std::vector<int32_t> ids = prefix_;
    const int64_t whole =
        std::max<int64_t>(options_.random_prefix_len + std::max<int64_t>(input - special_, 0), 1);
    const std::vector<int32_t> own = tokens(whole - static_cast<int64_t>(prefix_.size()));
    ids.insert(ids.end(), own.begin(), own.end());
    if (!tokenizer_) {
      request.prompt_tokens = static_cast<int64_t>(ids.size());
      request.prompt_ids = std::move(ids);
      return request;
    }
    request.prompt = text_of_length(std::move(ids), static_cast<size_t>(whole), request.prompt_tokens);
    request.prompt_tokens += special_;
    return request;
  }

 private:
  int64_t length(int64_t wanted) {
    const double w = static_cast<double>(wanted), r = options_.random_range_ratio;
    const auto low = std::max<int64_t>(static_cast<int64_t>(std::floor(w * (1 - r))), 1);
    const auto high = std::max<int64_t>(static_cast<int64_t>(std::ceil(w * (1 + r))), low);
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }
  std::vector<int32_t> tokens(int64_t count) {
    std::uniform_int_distribution<size_t> pick(0, usable_.size() - 1);
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < count; ++i) ids.push_back(usable_[pick(random_)]);
    return ids;
  }
  std::string text_of_length(std::vector<int32_t> ids, size_t wanted, int64_t& got) {
    std::string text;
    for (int round = 0; round < kRounds; ++round) {
      text = tokenizer_->decode(ids, true);
      ids = encode_plain(*tokenizer_, text);
      got = static_cast<int64_t>(ids.size());
      if (ids.size() == wanted) break;
      if (ids.size() > wanted) {
        ids.resize(wanted);
      } else {
        const std::vector<int32_t> more = tokens(static_cast<int64_t>(wanted - ids.size()));
        ids.insert(ids.end(), more.begin(), more.end());
      }
    }
    return text;
  }

  const DatasetOptions& options_;
  const Tokenizer* tokenizer_;
  std::mt19937_64 random_;
  int64_t special_ = 0;
  std::vector<int32_t> usable_, prefix_;
};

std::ifstream open_file(const DatasetOptions& o) {
  if (o.path.empty())
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("--dataset-name {} needs --dataset-path FILE", o.name));
  std::ifstream file(o.path, std::ios::binary);
  if (!file)
    throw Error(ErrorKind::kNotFound, fmt::format("--dataset-path {}: the file cannot be read", o.path));
  return file;
}

int64_t count_tokens(const Tokenizer& tokenizer, const std::string& text) {
  EncodeOptions with;
  with.add_special_tokens = true;
  return static_cast<int64_t>(tokenizer.encode(text, with).size());
}

std::vector<LoadRequest> sharegpt(const DatasetOptions& o, const Tokenizer& tokenizer) {
  std::ifstream file = open_file(o);
  json all = try_json(std::move(file));
  if (!all.is_array())
    throw Error(
        ErrorKind::kCorrupt,
        fmt::format("{}: expected a JSON array of {{\"conversations\": [{{\"value\": …}}, …]}}", o.path));
  std::vector<std::pair<std::string, std::string>> turns;
  for (const json& entry : all) {
    const json* talk =
        entry.is_object() && entry.contains("conversations") ? &entry["conversations"] : nullptr;
    if (!talk || !talk->is_array() || talk->size() < 2) continue;
    const auto value = [&](size_t i) {
      const json& turn = (*talk)[i];
      return turn.is_object() && turn.contains("value") && turn["value"].is_string()
                 ? turn["value"].get<std::string>()
                 : std::string();
    };
    turns.emplace_back(value(0), value(1));
  }
  std::shuffle(turns.begin(), turns.end(), std::mt19937_64(o.seed));
  std::vector<LoadRequest> requests;
  for (auto& [prompt, answer] : turns) {
    if (static_cast<int64_t>(requests.size()) == o.num_prompts) break;
    LoadRequest r;
    r.prompt_tokens = count_tokens(tokenizer, prompt);
    const bool fixed = o.sharegpt_output_len > 0;
    r.output_tokens =
        fixed ? o.sharegpt_output_len : static_cast<int64_t>(encode_plain(tokenizer, answer).size());
    if (r.prompt_tokens < kShortest || (!fixed && r.output_tokens < kShortest)) continue;
    if (r.prompt_tokens > kLongestPrompt || r.prompt_tokens + r.output_tokens > kLongestTotal) continue;
    r.prompt = std::move(prompt);
    requests.push_back(std::move(r));
  }
  return requests;
}

std::vector<LoadRequest> custom(const DatasetOptions& o, const Tokenizer* tokenizer) {
  std::ifstream file = open_file(o);
  std::vector<LoadRequest> requests;
  int64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const json entry = try_json(line);
    if (!entry.is_object() || !entry.contains("prompt") || !entry["prompt"].is_string())
      throw Error(ErrorKind::kCorrupt,
                  fmt::format("{}:{}: expected an object with \"prompt\"", o.path, number));
    LoadRequest r;
    r.prompt = entry["prompt"].get<std::string>();
    if (tokenizer) r.prompt_tokens = count_tokens(*tokenizer, r.prompt);
    r.output_tokens = o.custom_output_len;
    requests.push_back(std::move(r));
  }
  std::shuffle(requests.begin(), requests.end(), std::mt19937_64(o.seed));
  return requests;
}

}  // namespace

std::vector<LoadRequest> make_dataset(const DatasetOptions& o, const Tokenizer* tokenizer,
                                      int64_t vocab_size) {
  std::vector<LoadRequest> requests;
  if (o.name == "random") {
    RandomPrompts prompts(o, tokenizer, vocab_size);
    for (int64_t i = 0; i < o.num_prompts; ++i) requests.push_back(prompts.next());
    return requests;
  }
  if (o.name == "sharegpt") {
    if (!tokenizer)
      throw Error(ErrorKind::kInvalidArgument,
                  "--dataset-name sharegpt counts tokens and needs a tokenizer; give --tokenizer DIR");
    requests = sharegpt(o, *tokenizer);
  } else {
    requests = custom(o, tokenizer);
  }
  if (requests.empty())
    throw Error(ErrorKind::kInvalidArgument, fmt::format("{}: no usable prompt in it", o.path));
  // A short file is gone through again, as vLLM does.
  const size_t own = std::min(requests.size(), static_cast<size_t>(o.num_prompts));
  requests.resize(own);
  for (size_t i = own; i < static_cast<size_t>(o.num_prompts); ++i) requests.push_back(requests[i % own]);
  return requests;
}

}  // namespace duet
