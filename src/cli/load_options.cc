#include "cli/load_options.h"

#include <fmt/format.h>

#include <charconv>
#include <filesystem>

#include "cli/flags.h"
#include "cli/usage_error.h"
#include "engine/options.h"

namespace duet {

PromptSource find_prompt_source(const std::vector<std::string>& places) {
  PromptSource source;
  std::error_code ignored;
  for (const std::string& place : places) {
    const std::filesystem::path path = place;
    if (place.empty() || !std::filesystem::exists(path / "tokenizer.json", ignored)) continue;
    source.tokenizer = Tokenizer::load(path);
    source.vocab_size = source.tokenizer->vocab_size();
    source.path = place;
    return source;
  }
  for (const std::string& place : places) {
    const std::filesystem::path path = place;
    const bool file = std::filesystem::is_regular_file(path, ignored);
    if (place.empty() || (!file && !std::filesystem::exists(path / "config.json", ignored))) continue;
    LlmOptions options;
    options.model = place;
    options.load_format = file ? "dummy" : "auto";
    source.vocab_size = read_model_config(options).vocab_size;
    return source;
  }
  return source;
}

DatasetOptions dataset_options(const Flags& flags) {
  DatasetOptions o;
  o.name = flags.text("dataset-name");
  o.path = flags.text("dataset-path");
  o.num_prompts = flags.integer("num-prompts");
  o.seed = static_cast<uint64_t>(flags.integer("seed"));
  o.random_input_len = flags.integer(flags.given("input-len") ? "input-len" : "random-input-len");
  o.random_output_len = flags.integer(flags.given("output-len") ? "output-len" : "random-output-len");
  o.random_prefix_len = flags.integer("random-prefix-len");
  o.random_range_ratio = flags.number("random-range-ratio");
  o.sharegpt_output_len = flags.integer("sharegpt-output-len");
  o.custom_output_len = flags.integer("custom-output-len");
  return o;
}

std::vector<double> percentile_list(const Flags& flags) {
  const std::string text = flags.text("metric-percentiles");
  std::vector<double> list;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    double value = -1;
    const auto [stop, error] = std::from_chars(text.data() + at, text.data() + end, value);
    if (error != std::errc() || stop != text.data() + end || !(value >= 0 && value <= 100)) {
      throw UsageError(fmt::format("{} is \"{}\"; expected numbers of 0 to 100, such as 50,90,99",
                                   flags.shown("metric-percentiles"), text));
    }
    list.push_back(value);
    at = end + 1;
  }
  return list;
}

}  // namespace duet
