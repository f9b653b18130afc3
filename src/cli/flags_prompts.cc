// Flags of what goes in and out of generation, and of sampling.
#include "cli/flag_rows.h"

namespace duet {
namespace {

constexpr FlagSpec kPromptRows[] = {
    {"prompt", FlagType::kText, "TEXT...", "", kPrompts, kGenerate,
     "One or more prompts. In the variable: one prompt per line.", 0, 0, true, true},
    {"prompts", FlagType::kText, "FILE", "", kPrompts, kGenerate | kLogits,
     "Prompts from a file: FILE.txt has one per line (blank lines are skipped); a line of FILE.jsonl gives "
     "\"prompt\", \"prompt_token_ids\" or \"messages\"."},
    {"prompt-token-ids", FlagType::kIdList, "IDS", "", kPrompts, kGenerate | kLogits,
     "A prompt as token ids, separated by commas: 0,5,7. Needs no tokenizer. Can be given several times.", 0,
     0, true},
    {"input", FlagType::kText, "FILE", "", kPrompts, kTokenize,
     "Lines of JSON: {\"text\": ...} or {\"messages\": [...], \"add_generation_prompt\": true}."},
    {"output", FlagType::kText, "FILE", "", kPrompts, kGenerate | kLogits | kTokenize | kTraceChart,
     "Where the result goes: .jsonl for generate and tokenize (\"-\" is standard output), .safetensors for "
     "logits."},
    {"chat", FlagType::kBool, "", "off", kPrompts, kGenerate,
     "Take each text prompt as a user's message and put it through the chat template."},
    {"add-special-tokens", FlagType::kBool, "", "off", kPrompts, kTokenize,
     "Add what the tokenizer adds to a plain prompt (BOS)."},
    {"chunk", FlagType::kInt, "N", "0", kPrompts, kLogits,
     "Prefill each prompt in chunks of N tokens; 0: whole.", 0, kBig},
    {"decode", FlagType::kBool, "", "off", kPrompts, kLogits,
     "Feed the tokens one by one through the decode path."},

    {"max-tokens", FlagType::kInt, "N", "16", kSampling, kGenerate, "Tokens to generate, at most.", 1, kBig},
    {"min-tokens", FlagType::kInt, "N", "0", kSampling, kGenerate,
     "Neither EOS nor a stop ends a continuation before it has N tokens.", 0, kBig},
    {"temperature", FlagType::kNumber, "T", "", kSampling,
     kGenerate | kBenchServe | kBenchThroughput | kBenchLatency,
     "0 is greedy. Default: the model's generation_config.json, else 1.", 0, 1e6},
    {"top-p", FlagType::kNumber, "P", "", kSampling,
     kGenerate | kBenchServe | kBenchThroughput | kBenchLatency,
     "Sample from the likeliest tokens that together have probability P. Default: the model's, else 1.", 0,
     1},
    {"top-k", FlagType::kInt, "K", "", kSampling, kGenerate | kBenchServe | kBenchThroughput | kBenchLatency,
     "Sample from the K likeliest tokens; 0 or -1: all. Default: the model's, else all.", -1, kBig},
    {"min-p", FlagType::kNumber, "P", "", kSampling, kGenerate | kBenchThroughput | kBenchLatency,
     "Drop tokens less likely than P times the likeliest. Default: the model's, else 0.", 0, 1},
    {"n", FlagType::kInt, "N", "1", kSampling, kGenerate | kBenchThroughput | kBenchLatency,
     "Continuations per prompt.", 1, 1024},
    {"stop", FlagType::kText, "TEXT", "", kSampling, kGenerate,
     "End a continuation where TEXT appears; TEXT itself is cut off. Can be given several times. In the "
     "variable: one per line.",
     0, 0, true},
    {"stop-token-ids", FlagType::kIdList, "IDS", "", kSampling, kGenerate,
     "End a continuation at any of these tokens, separated by commas.", 0, 0, true},
    {"ignore-eos", FlagType::kBool, "", "off", kSampling,
     kGenerate | kBenchServe | kBenchThroughput | kBenchLatency, "Go on after the end-of-sequence token."},
    {"logprobs", FlagType::kInt, "K", "", kSampling, kGenerate | kBenchServe,
     "Write the log-probability of each token and of the K likeliest at its place.", 0, 1024},
    {"generation-config", FlagType::kChoice, "auto|vllm", "auto", kSampling, kGenerate | kServe,
     "Where sampling defaults come from: the model's generation_config.json, or vLLM's neutral ones (its "
     "end-of-sequence tokens count either way)."},
};

}  // namespace

std::span<const FlagSpec> prompt_flags() {
  return kPromptRows;
}

}  // namespace duet
