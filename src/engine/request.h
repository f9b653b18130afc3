// Sequence: one continuation of one prompt on its way through the engine (a request with n > 1 is n
// of them). Made by Llm, moved between queues by the scheduler, extended by the sampler's tokens.
// Always holds: KV of tokens [0, computed) is in `blocks`; a prompt token is computed expanded and a
// generated token absorbed, the first time and after every preemption.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/ops.h"

namespace duet {

struct Sequence {
  int64_t id = 0;               // order of arrival, unique
  std::vector<int32_t> tokens;  // prompt, then what was generated
  int64_t prompt_tokens = 0;
  /// `duet logits --decode` takes a prompt through the decode path.
  AttentionForm prompt_form = AttentionForm::kExpanded;
  /// Logits are wanted of tokens from this index on (the last one, for generation).
  int64_t first_wanted = 0;
  /// For the last token's successor the likeliest token will do.
  bool best_will_do = false;

  int64_t computed = 0;
  std::vector<int32_t> blocks;    // of the KV cache, in order of position
  std::vector<int64_t> contents;  // numbers in the prefix cache of the full ones, as far as published
  int64_t cached = 0;             // tokens that came from the prefix cache when it was first admitted
  int64_t reached = 0;            // the most that `computed` ever was: beyond it lies new work
  int64_t preemptions = 0;
  int64_t started_ns = 0;  // when its first step began

  int64_t length() const { return static_cast<int64_t>(tokens.size()); }
  int64_t generated() const { return length() - prompt_tokens; }
  int64_t pending() const { return length() - computed; }
  /// A generated token; the next logits wanted are its own.
  void append(int32_t token) {
    tokens.push_back(token);
    first_wanted = length() - 1;
  }
};

/// Tokens [first, first + count) of a sequence, computed in one step.
struct ScheduledPiece {
  Sequence* sequence = nullptr;
  int64_t first = 0;
  int64_t count = 0;
};

}  // namespace duet
