// Program: the stages of one step on both lanes with the events between them. Made by a schedule
// (schedule.h), proven by the validator, run by executors and the simulator, drawn by trace and
// charts. A value: printable, hashable, equal on every rank.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "overlap/stage.h"

namespace duet {

struct Program {
  std::string schedule;  // "sequential", "overlapped"
  int micro_batches = 1;
  std::vector<Stage> stages;         // logical order: micro-batch after micro-batch, each in program order
  std::vector<std::string> buffers;  // names by BufferId, for messages
  /// Where a buffer lies, by BufferId. Two buffers of one place must never be in use at the same time.
  std::vector<int> place;
  std::vector<BufferId> kept;                  // read after the program, by later steps
  std::array<std::vector<int>, kLanes> order;  // what each lane runs, as stage indices
  /// The compute lane runs, of all micro-batches' next stages, the first in its order that has nothing to
  /// wait for: where ranks differ in their work, one that waits for a peer's rows goes on with another
  /// micro-batch. False: strictly in order. The comm lane always is, since ranks must meet in the same order.
  bool runs_ahead = false;
  /// waits[s]: stages of other queues that must have finished before s starts (derived events).
  std::vector<std::vector<int>> waits;

  const std::vector<int>& lane_order(Lane lane) const { return order[static_cast<size_t>(lane)]; }
  /// Queues: stages that run one after the other, in the order of their lane. The comm lane is one
  /// (kCommQueue); the compute lane is one too, or, where it runs ahead, one for each micro-batch.
  static constexpr size_t kCommQueue = 0;
  size_t queue_count() const { return 1 + (runs_ahead ? static_cast<size_t>(micro_batches) : 1); }
  size_t queue_of(const Stage& stage) const {
    if (stage.lane == Lane::kComm) return kCommQueue;
    return 1 + (runs_ahead ? static_cast<size_t>(stage.micro_batch) : 0);
  }
  size_t queue_of(int stage) const { return queue_of(stages[static_cast<size_t>(stage)]); }
  std::vector<std::vector<int>> queues() const;
  int event_count() const;
};

/// FNV-1a over everything that must agree between ranks.
uint64_t hash(const Program& program);
/// One line per stage in lane order with its waits, for people.
std::string to_string(const Program& program);
/// "L3.b1 attn_core": layer, micro-batch, kind.
std::string stage_label(const Stage& stage);

}  // namespace duet
