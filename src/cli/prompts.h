// Prompts from flags and files. Called by generate and logits before a model is loaded, so that a
// bad line costs nothing.
#pragma once

#include <string>
#include <vector>

#include "duet/llm.h"

namespace duet {

class Flags;

/// A .txt file has one prompt per line, a line of a .jsonl file gives exactly one of "prompt",
/// "prompt_token_ids", "messages" (other fields are ignored); blank lines are skipped. `chat` turns
/// text into a user's message. Throws Error that names file and line.
std::vector<Prompt> read_prompts(const std::string& path, bool chat);

/// One line of a .jsonl file; `where` is "FILE:LINE" for messages.
Prompt parse_prompt_line(const std::string& line, const std::string& where, bool chat);

/// From --prompt, --prompts or --prompt-token-ids. Exactly one of them is given, else UsageError;
/// one on the command line beats the variables of the others.
std::vector<Prompt> prompts_from_flags(const Flags& flags, bool chat);

/// All of them are token ids: no tokenizer is needed to run them.
bool only_token_ids(const std::vector<Prompt>& prompts);

}  // namespace duet
