// The prompts that a benchmark sends, and how many tokens each answer gets. Names and meanings of the
// options are those of vLLM's benchmark. Made before anything is measured; the same seed gives the same.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace duet {

class Tokenizer;

struct DatasetOptions {
  std::string name = "random";  // random | sharegpt | custom
  std::string path;             // of sharegpt (a JSON array) and custom (lines of {"prompt": …})
  int64_t num_prompts = 1000;
  uint64_t seed = 0;
  int64_t random_input_len = 1024, random_output_len = 128, random_prefix_len = 0;
  double random_range_ratio = 0;    // lengths uniform within (1 ± ratio) times what is asked for
  int64_t sharegpt_output_len = 0;  // 0: as long as the answer in the file
  int64_t custom_output_len = 256;
};

struct LoadRequest {
  std::string prompt;               // text, or …
  std::vector<int32_t> prompt_ids;  // … token ids where there is no tokenizer
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
};

/// `tokenizer` may be null: random prompts are token ids in [0, vocab_size) then, and the files of the
/// others are refused. Throws Error that names file and line.
std::vector<LoadRequest> make_dataset(const DatasetOptions& options, const Tokenizer* tokenizer,
                                      int64_t vocab_size);

}  // namespace duet
