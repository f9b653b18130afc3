// Model: one rank's shard of a model, as the engine's ranks see it. It records its forward pass as
// stages, once per micro-batch, and keeps what a step's bodies need. One folder per family.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include "kernels/ops.h"
#include "load/config.h"
#include "load/weights.h"
#include "model/batch.h"
#include "model/options.h"
#include "overlap/recorder.h"

namespace duet {

class Communicator;

/// What a rank needs to build its shard. Pointers outlive the model.
struct ModelSetup {
  ModelConfig config;
  const WeightSource* weights = nullptr;
  Communicator* comm = nullptr;  // rank and ranks; collectives are called on the comm lane only
  CpuLevel level = CpuLevel::kPortable;
  ThreadPool* pool = nullptr;
  MemoryPolicy memory{ComputeDtype::kFloat32};
  ExpertPath expert_path = ExpertPath::kAllReduce;
  bool expert_parallel = false;  // whole experts per rank
  BatchLimits limits;
  std::function<void(double)> progress;  // fraction of the weights packed

  int rank() const;
  int ranks() const;
  int threads() const { return pool ? pool->threads() : 1; }
};

class Model {
 public:
  virtual ~Model() = default;

  /// Records the forward pass of the micro-batch that `stages` has begun.
  virtual void record(Stages& stages) = 0;
  /// Sets what the recorded bodies work on; before every run of a program. `batch` outlives the run.
  virtual void begin_step(const StepBatch& batch) = 0;
  /// Rank 0: [logits rows, vocab] of the last step, as a full-precision gather.
  virtual std::span<const float> logits() const = 0;
  /// Rank 0: one entry per logits row. Where its id is not kWholeRow the row of logits() is unspecified.
  virtual std::span<const BestToken> best_tokens() const = 0;
  /// By layer: the (row, expert) pairs that the experts of this rank worked on in the last step, of one
  /// micro-batch: how evenly the router spread it. 0 for a layer without experts.
  virtual std::span<const int64_t> expert_rows(int micro_batch) const = 0;
};

/// Loads and packs this rank's shard on the calling thread; the family follows from the architecture.
std::unique_ptr<Model> make_model(const ModelSetup& setup);

/// Bytes of one rank, for the memory plan; pure.
struct ModelBytes {
  int64_t weights = 0;
  int64_t kv_per_block = 0;
  int64_t activations = 0;
  int64_t scratch = 0;
  int64_t max_collective_elements = 0;  // for Communicator::reserve
  int64_t max_all_to_all_elements = 0;
};
ModelBytes model_bytes(const ModelConfig& config, const MemoryPolicy& policy, ExpertPath path,
                       bool expert_parallel, int rank, int ranks, int threads, const BatchLimits& limits);

/// Every tensor name that the model reads on any rank, for the audit of a checkpoint.
std::unordered_set<std::string> model_tensor_names(const ModelConfig& config);

}  // namespace duet
