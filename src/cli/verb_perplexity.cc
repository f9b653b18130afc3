// duet eval perplexity: how well a model predicts a text, so that formats and dtypes can be compared.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <ostream>

#include "base/error.h"
#include "base/json_text.h"
#include "cli/cli.h"
#include "cli/flags.h"
#include "cli/options.h"
#include "cli/output_file.h"
#include "cli/progress.h"
#include "cli/usage_error.h"
#include "cli/verbs.h"
#include "duet/llm.h"

namespace duet {
namespace {

/// −log p of `token` under one row of logits, in float64: thousands of them are added.
double negative_log_probability(const float* logits, int64_t vocab, int32_t token) {
  const double top = *std::max_element(logits, logits + vocab);
  double sum = 0;
  for (int64_t i = 0; i < vocab; ++i) sum += std::exp(logits[i] - top);
  return std::log(sum) + top - logits[token];
}

struct Window {
  Prompt prompt;
  size_t first_scored = 1;  // in the window
};

/// Windows of `size` tokens, `stride` apart; the last ends with the text.
std::vector<Window> windows_of(const std::vector<int32_t>& tokens, size_t size, size_t stride) {
  std::vector<Window> windows;
  size_t scored = 0;  // tokens of the text that an earlier window has dealt with
  for (size_t begin = 0; scored < tokens.size(); begin += stride) {
    const size_t end = std::min(begin + size, tokens.size());
    Window w;
    w.prompt.token_ids.assign(tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                              tokens.begin() + static_cast<std::ptrdiff_t>(end));
    w.first_scored = std::max<size_t>(scored - std::min(scored, begin), 1);
    scored = end;
    windows.push_back(std::move(w));
  }
  return windows;
}

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(in)), {});
  if (!in && !in.eof()) throw Error(ErrorKind::kNotFound, path + ": cannot be read");
  if (text.empty()) throw Error(ErrorKind::kInvalidArgument, path + ": is empty or cannot be read");
  return text;
}

}  // namespace

int verb_eval_perplexity(const Flags& flags, const CliContext& context) {
  const auto size = static_cast<size_t>(flags.integer("window"));
  const auto stride = flags.given("stride") ? static_cast<size_t>(flags.integer("stride")) : size;
  if (size < 2)
    throw UsageError(fmt::format("{} is 1: a window's first token is not scored", flags.shown("window")));
  if (stride > size)
    throw UsageError(fmt::format("{} is {}, more than {} ({}): tokens between windows would not count",
                                 flags.shown("stride"), stride, flags.shown("window"), size));
  LlmOptions options = llm_options(flags);
  options.skip_tokenizer_init = is_mpi_worker();
  options.all_logits = true;
  const std::string text = is_mpi_worker() ? "" : read_text(flags.positional(1));
  ProgressView view(context);
  const std::unique_ptr<Llm> llm = Llm::load(options, [&](double fraction) { view.loading(fraction); });
  if (!llm) return kExitOk;
  view.clear();
  Prompt whole;
  whole.text = text;
  whole.add_special_tokens = false;
  const std::vector<int32_t> tokens = llm->tokenize(whole);
  const std::vector<Window> windows = windows_of(tokens, size, stride);

  double sum = 0;
  int64_t scored = 0;
  // As many windows at a time as a step has room for: fewer would run small steps, more gain nothing.
  const size_t at_once = std::max<size_t>(static_cast<size_t>(options.max_num_batched_tokens) / size, 1);
  for (size_t first = 0; first < windows.size(); first += at_once) {
    std::vector<Prompt> prompts;
    for (size_t w = first; w < std::min(first + at_once, windows.size()); ++w)
      prompts.push_back(windows[w].prompt);
    llm->logits(prompts, {}, [&](size_t prompt, int64_t row, int64_t rows, const float* logits) {
      const Window& w = windows[first + prompt];
      for (int64_t r = row; r < row + rows; ++r, logits += llm->vocab_size()) {
        const auto next = static_cast<size_t>(r) + 1;  // the token that this row predicts
        if (next < w.first_scored || next >= w.prompt.token_ids.size()) continue;
        sum += negative_log_probability(logits, llm->vocab_size(), w.prompt.token_ids[next]);
        ++scored;
      }
    });
    view.measuring("scoring",
                   static_cast<double>(first + prompts.size()) / static_cast<double>(windows.size()));
  }
  view.clear();
  if (scored == 0)
    throw Error(ErrorKind::kInvalidArgument, flags.positional(1) + ": has fewer than two tokens");
  const double mean = sum / static_cast<double>(scored);
  // Of the whole text, as if tokens that were not scored cost the mean.
  const double bits_per_byte =
      mean * static_cast<double>(tokens.size()) / std::log(2.0) / static_cast<double>(text.size());
  const LlmStats stats = llm->stats();
  const double rate = static_cast<double>(stats.prefill_tokens) / std::max(stats.prefill_seconds, 1e-9);
  const nlohmann::ordered_json report = {{"model", options.model},
                                         {"file", flags.positional(1)},
                                         {"dtype", options.dtype},
                                         {"kv_cache_dtype", options.kv_cache_dtype},
                                         {"quantization", options.quantization},
                                         {"window", size},
                                         {"stride", stride},
                                         {"tokens", tokens.size()},
                                         {"scored_tokens", scored},
                                         {"perplexity", std::exp(mean)},
                                         {"nats_per_token", mean},
                                         {"bits_per_byte", bits_per_byte},
                                         {"tokens_per_second", rate}};
  if (flags.given("json")) {
    OutputFile file(flags.text("json"), context.out);
    file.stream() << json_text(report, 2) << '\n';
    file.commit();
    if (flags.text("json") == "-") return kExitOk;
  }
  context.out << fmt::format(
      "perplexity {:.4f} over {} tokens in windows of {}, {:.4f} bits per byte, {:.0f} tokens/s\n",
      std::exp(mean), scored, size, bits_per_byte, rate);
  return kExitOk;
}

}  // namespace duet
