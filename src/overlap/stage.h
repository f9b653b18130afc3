// Stage: one unit of work of one micro-batch in one layer, on one lane. What a model states about
// its forward pass, and all that schedules, validator, executors, simulator and trace know of it.
// Plain data: a stage says what it reads and writes; nobody writes a wait by hand.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace duet {

/// A queue of work. Comm runs in order, compute in order or ahead of it (Program::runs_ahead).
enum class Lane : uint8_t { kCompute = 0, kComm = 1 };
inline constexpr int kLanes = 2;
/// "compute", "comm".
const char* to_string(Lane lane);

/// Index into a recording's table of buffers. A buffer here is what order matters for: the rows of
/// one micro-batch in one activation, or the KV rows that one micro-batch writes in one layer.
using BufferId = uint32_t;

struct Stage {
  std::string kind;  // "attn_core", "dispatch", …: the name in traces, charts and metrics
  int layer = -1;    // −1: before the first or after the last layer
  int micro_batch = 0;
  Lane lane = Lane::kCompute;
  std::vector<BufferId> reads;
  std::vector<BufferId> writes;

  bool operator==(const Stage&) const = default;
};

}  // namespace duet
