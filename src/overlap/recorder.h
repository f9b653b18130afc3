// Stages: what a model writes its forward pass into, once per micro-batch. The model names a
// stage's kind, what it reads and writes, and what it does; it never sees a lane's queue, an event
// or another micro-batch. Recorded once per number of micro-batches and kept: sizes of a step are
// looked up by the bodies when they run.
#pragma once

#include <functional>
#include <initializer_list>
#include <string>
#include <unordered_map>
#include <vector>

#include "overlap/stage.h"

namespace duet {

using StageBody = std::function<void()>;

/// The stages of all micro-batches in logical order, and what each does.
struct Recording {
  std::vector<Stage> stages;
  std::vector<StageBody> bodies;  // one per stage
  std::vector<std::string> buffers;
  std::vector<BufferId> kept;  // what later steps read
  int micro_batches = 0;
};

class Stages {
 public:
  /// What follows belongs to micro-batch `micro_batch`, layer −1 (called in ascending order).
  void begin_micro_batch(int micro_batch);
  void begin_layer(int layer) { layer_ = layer; }
  int micro_batch() const { return micro_batch_; }
  int layer() const { return layer_; }

  /// This micro-batch's rows of a buffer, by name; the same id for the same name.
  BufferId buffer(const std::string& name);
  /// The KV rows that this micro-batch writes in the current layer …
  BufferId kv();
  /// … and all that its attention may read: its own and those of earlier micro-batches, which hold
  /// the beginning of a sequence that was cut.
  std::vector<BufferId> kv_so_far();

  void compute(const char* kind, std::vector<BufferId> reads, std::vector<BufferId> writes, StageBody body);
  /// A collective: runs on the comm lane, in the same order on every rank.
  void collective(const char* kind, std::vector<BufferId> reads, std::vector<BufferId> writes,
                  StageBody body);

  Recording take() { return std::move(recording_); }

 private:
  BufferId intern(const std::string& name);
  void add(const char* kind, Lane lane, std::vector<BufferId> reads, std::vector<BufferId> writes,
           StageBody body);

  Recording recording_;
  std::unordered_map<std::string, BufferId> ids_;
  int micro_batch_ = 0;
  int layer_ = -1;
};

}  // namespace duet
