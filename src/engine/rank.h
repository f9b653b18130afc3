// Rank: one worker of the group, whole: communicator and comm lane, model shard, programs, what it
// measured. Lives on its own pinned thread (its compute lane), which is the only one that calls it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "engine/planner.h"
#include "engine/rank_group.h"
#include "engine/rank_stats.h"
#include "exec/comm_lane.h"
#include "exec/cpu_executor.h"
#include "exec/trace.h"
#include "model/model.h"

namespace duet {

struct Hello;

/// What a rank is told to do; the first byte of a broadcast command.
enum class Command : uint8_t { kStep, kStats, kResetStats, kTrace, kClose };

class Rank {
 public:
  /// Joins the group (every rank calls this at the same time): agrees on CPU level and build, loads
  /// the shard, compares programs. `make_transport` runs on the comm lane. Throws on every rank when
  /// one fails.
  Rank(const RankOptions& options, const ModelConfig& config, const WeightSource& weights,
       const MemoryPlan& plan, int64_t max_positions, const std::vector<int>& lane_cores,
       const std::vector<int>& worker_cores, int threads,
       const std::function<std::unique_ptr<Transport>()>& make_transport,
       const std::function<void(double)>& progress);
  ~Rank();

  int rank() const { return comm_->rank(); }
  CpuLevel level() const { return level_; }
  /// What the group agreed on: hosts differ in free memory, so the smallest of what ranks planned.
  int64_t kv_blocks() const { return limits_.kv_blocks; }
  int64_t max_positions() const { return limits_.max_positions; }
  /// describe_machine (cost_cache.h) of every rank; empty where nothing is ever split.
  const std::vector<std::string>& machines() const { return machines_; }
  std::string transport_name() const { return comm_->transport_name(); }

  /// Rank 0 → all; on other ranks returns what rank 0 sent.
  void broadcast(std::vector<std::byte>& command);
  /// Throws Error(kInternal) when the batch is inconsistent or does not fit.
  void check(const StepBatch& batch) const { check_batch(batch, limits_); }
  /// Rank 0 only.
  Planner& planner() { return *planner_; }
  /// Runs one step; `logits` of the result is set on rank 0. `decision`: why it is cut so, for the trace.
  StepResult step(const StepBatch& batch, const std::string& decision = {});
  /// Collectives of all ranks; the result is complete on rank 0.
  RunStats stats();
  void reset_stats();
  /// What went over the wire; between steps.
  const CommStats& comm_stats() const { return comm_->stats(); }
  /// Every rank's trace events, on rank 0 (elsewhere empty).
  std::vector<std::string> gather_trace();
  /// From any thread, also while this hangs: "compute lane in L3.b1 attn_core, comm lane waits", and how many
  /// stages it has run since the start.
  std::string whereabouts() const;
  uint64_t stages_done() const { return progress_.stages_done; }
  void abort(const std::string& reason) noexcept { comm_->abort(reason); }

 private:
  struct Prepared {
    std::shared_ptr<const Program> program;
    std::unique_ptr<LanePlan> plan;
    std::vector<StageTime> times;
  };

  Hello agree(const Hello& own, const std::string& failure);
  void prepare_all();
  const Recording& recording(int micro_batches);
  Prepared& prepare(const StepBatch& batch);
  void drill(std::vector<StageBody>& bodies);
  std::string text_of(int rank, const std::string& own);  // what that rank calls its own
  void check_same_program(const Program& program);
  void observe(const StepBatch& batch, const Prepared& p, const StepResult& result);

  RankOptions options_;
  CommLane lane_;  // outlives the communicator, which is closed on it
  std::unique_ptr<Communicator> comm_;
  CpuLevel level_ = CpuLevel::kPortable;
  ThreadPool pool_;
  BatchLimits limits_;
  std::unique_ptr<Model> model_;
  std::map<int, Recording> recordings_;  // by number of micro-batches
  // By (micro-batches, overlap, costs that the order was found with). The planner keeps its choices, so the
  // same costs come again and again; what is no longer asked for is dropped.
  std::map<std::tuple<int, bool, std::vector<float>>, Prepared> programs_;
  std::unique_ptr<Planner> planner_;  // rank 0
  std::vector<std::string> machines_;
  RankStats stats_;
  LaneProgress progress_;
  mutable std::mutex watch_mutex_;          // guards the next one
  std::shared_ptr<const Program> watched_;  // the program that progress_ counts in
  int64_t steps_ = 0;
  std::vector<TracedStep> traced_;
  size_t traced_stages_ = 0;
  int64_t origin_ns_ = 0;  // the same moment on every rank, as far as a barrier can tell
};

}  // namespace duet
