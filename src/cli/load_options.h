// From flags to the datasets and the plan of bench serve, throughput and latency.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "loadgen/dataset.h"
#include "text/tokenizer.h"

namespace duet {

class Flags;

/// What prompts are made of. `tokenizer` is null where the directory has none; vocab_size is
/// config.json's then, 0 where that is missing too.
struct PromptSource {
  std::unique_ptr<Tokenizer> tokenizer;
  int64_t vocab_size = 0;
  std::string path;  // the tokenizer's
};
/// The first of `places` (directories, or a config.json) that says something.
PromptSource find_prompt_source(const std::vector<std::string>& places);

DatasetOptions dataset_options(const Flags& flags);
/// "50,90,99.9"; throws UsageError.
std::vector<double> percentile_list(const Flags& flags);

}  // namespace duet
