// Dual-batch overlap through Duet's C++ API: the same prompts on two ranks, overlap off and on, on
// both expert paths, and the tokens must be the same. Uses nothing but duet/llm.h.
//
//   offline_dbo MODEL PROMPTS.jsonl [max_tokens]
//
// A line of PROMPTS.jsonl holds "prompt" (text) or "messages" (a chat). Exit code 0: every token
// equal and some steps overlapped; 1: not so; 2: something could not be loaded or read.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "duet/llm.h"

namespace {

std::vector<duet::Prompt> read_prompts(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + ": cannot be read");
  std::vector<duet::Prompt> prompts;
  for (std::string line; std::getline(file, line);) {
    if (line.empty()) continue;
    const nlohmann::json json = nlohmann::json::parse(line);
    duet::Prompt prompt;
    if (json.contains("messages"))
      prompt.messages_json = json.at("messages").dump();
    else
      prompt.text = json.at("prompt").get<std::string>();
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

struct Run {
  std::vector<duet::RequestOutput> outputs;
  duet::LlmStats stats;
  double seconds = 0;
};

Run generate(duet::Llm& llm, const std::vector<duet::Prompt>& prompts, int max_tokens, const char* dbo) {
  duet::SamplingParams params;
  params.temperature = 0.0;  // greedy
  params.max_tokens = max_tokens;
  params.ignore_eos = true;
  llm.set_dbo(dbo);
  llm.reset_stats();
  Run run;
  const auto start = std::chrono::steady_clock::now();
  run.outputs = llm.generate(prompts, {params});
  run.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  run.stats = llm.stats();
  return run;
}

size_t differing(const Run& a, const Run& b) {
  size_t count = 0;
  for (size_t i = 0; i < a.outputs.size(); ++i)
    count += a.outputs[i].completions[0].token_ids != b.outputs[i].completions[0].token_ids;
  return count;
}

void print(const char* path, const char* dbo, const Run& run) {
  const duet::LlmStats& s = run.stats;
  // Without overlap nothing is meant to be hidden, and a share says nothing.
  char hidden[16] = "-";
  if (s.steps_overlapped > 0) std::snprintf(hidden, sizeof(hidden), "%.2f", s.hidden_share);
  std::printf("%-11s %-4s %8.2f %8.0f %7lld %11lld %11.1f %13s\n", path, dbo, run.seconds,
              static_cast<double>(s.decode_tokens) / s.decode_seconds, static_cast<long long>(s.steps),
              static_cast<long long>(s.steps_overlapped), s.exposed_ms, hidden);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s MODEL PROMPTS.jsonl [max_tokens]\n", argv[0]);
    return 2;
  }
  const std::vector<duet::Prompt> prompts = read_prompts(argv[2]);
  const int max_tokens = argc > 3 ? std::atoi(argv[3]) : 100;

  std::printf("%zu prompts, %d tokens each, two ranks\n", prompts.size(), max_tokens);
  std::printf("expert path dbo   seconds  decode/s   steps  overlapped  exposed ms  hidden share\n");
  bool good = true;
  for (const char* path : {"all-reduce", "all-to-all"}) {
    duet::LlmOptions options;
    options.model = argv[1];
    options.tensor_parallel_size = 2;
    options.distributed_executor_backend = "threads";  // both ranks in this process
    options.expert_path = path;
    options.dbo = "on";
    // The defaults are made for thousands of tokens; this model's steps are small.
    options.dbo_prefill_token_threshold = 32;
    options.dbo_decode_token_threshold = 8;
    const auto llm = duet::Llm::load(options);

    const Run off = generate(*llm, prompts, max_tokens, "off");
    print(path, "off", off);
    const Run on = generate(*llm, prompts, max_tokens, "on");
    print(path, "on", on);
    if (const size_t count = differing(off, on)) {
      std::printf("  %zu of %zu continuations differ\n", count, prompts.size());
      good = false;
    }
    if (on.stats.steps_overlapped == 0 || off.stats.steps_overlapped != 0) {
      std::printf("  overlap did not follow its switch\n");
      good = false;
    }
  }
  std::printf("%s\n", good ? "tokens with overlap off and on are the same" : "FAILED");
  return good ? 0 : 1;
} catch (const std::exception& e) {
  std::fprintf(stderr, "offline_dbo: %s\n", e.what());
  return 2;
}
