// RankGroup: all ranks of one model, seen from rank 0. Starts them (threads of this process, or the
// processes of an MPI job), loads each one's shard, and runs steps: broadcast, program on both
// lanes, logits back. Called by the engine; nothing else knows how many ranks there are.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/cpu.h"
#include "comm/job_transport.h"
#include "comm/shaped_transport.h"
#include "duet/llm.h"
#include "exec/cpu_executor.h"
#include "load/config.h"
#include "model/batch.h"
#include "model/options.h"
#include "tensor/dtype.h"

namespace duet {

struct Plan;
struct Program;
struct SplitPolicy;
enum class CommLanes : uint8_t;

enum class Backend : uint8_t { kThreads, kMpi };
enum class LoadFormat : uint8_t { kAuto, kDummy };

struct RankOptions {
  std::string model;  // directory; with kDummy also a config.json file
  LoadFormat load_format = LoadFormat::kAuto;
  uint64_t dummy_seed = 0;
  ComputeDtype dtype = ComputeDtype::kAuto;
  Quantization quantization = Quantization::kAsStored;
  bool int8_head = true;  // with kW8A8: kv_b_proj and the head become int8 too
  KvCacheDtype kv_cache = KvCacheDtype::kAuto;
  int ranks = 1;  // tensor-parallel size
  Backend backend = Backend::kThreads;
  CommTransport comm_transport = CommTransport::kAuto;  // of kMpi: what data travels by
  int threads_per_rank = 0;  // 0: the machine's cores divided by the ranks on it, at least 1
  ExpertPath expert_path = ExpertPath::kAllReduce;
  bool expert_parallel = false;  // whole experts per rank; implied by kAllToAll
  DType wire = DType::kBf16;
  std::optional<LinkShape> link;  // between thread ranks
  int64_t max_batched_tokens = 2048;
  int64_t max_logits_rows = 256;  // rows of one step whose logits are wanted, at most
  int64_t max_model_len = 0;      // 0: the model's
  int block_size = 16;
  int64_t kv_cache_bytes = 0;  // 0: enough for a sane default, within the machine's memory
  int max_micro_batches = 1;   // 1: nothing is allocated for overlap
  double skew = 0;         // > 0: a fixed order by index and skew; 0: found in virtual time on measured costs
  std::string cost_cache;  // directory of measured costs; empty: measured at every start
  bool trace = false;      // keep every stage's times for write_trace
};

struct ModelInfo {
  ModelConfig config;
  ComputeDtype dtype = ComputeDtype::kFloat32;
  int64_t max_model_len = 0;
  int64_t kv_blocks = 0;
  int block_size = 0;
  CpuLevel cpu_level = CpuLevel::kPortable;
  std::string transport;  // "threads", "shaped threads", "mpi", "tcp"
};

/// Bytes of one rank, before anything is loaded.
struct MemoryPlan {
  int64_t weights = 0;
  int64_t kv_cache = 0;
  int64_t kv_bytes_per_token = 0;
  int64_t kv_blocks = 0;
  int64_t activations = 0;  // buffers for max_batched_tokens, in the worst case of routing
  int64_t scratch = 0;      // kernel scratch and communication staging
  int64_t total() const { return weights + kv_cache + activations + scratch; }
};
/// Throws Error(kResourceExhausted) that says what would fit when all ranks of this machine together
/// need more than its memory.
MemoryPlan plan_memory(const RankOptions& options, const ModelConfig& config);
/// How ranks with these options hold the model in memory.
MemoryPolicy memory_policy(const RankOptions& options, const ModelConfig& config);

/// Rank 0's view of one step.
struct StepResult {
  std::span<const float> logits;    // [logits rows, vocab], until the next step
  std::span<const BestToken> best;  // [logits rows]: what stands in for the row where that was asked for
  int64_t step_ns = 0;
  int64_t exposed_ns = 0;  // the compute lane waited for the comm lane
  int64_t comm_ns = 0;     // the comm lane was busy
  bool overlapped = false;
  int micro_batches = 1;
  // Rank 0's stages and when they ran, until the next step.
  std::shared_ptr<const Program> program;
  std::span<const StageTime> times;
  std::string decision;     // of the planner: "whole is faster", "off", …; empty for a batch that came cut
  double predicted_ns = 0;  // the planner's, 0 where it knew nothing
};

/// Totals over all steps so far (design §1: the words compute, communication, exposed, hidden).
struct RunStats {
  int64_t steps = 0;
  int64_t steps_overlapped = 0;
  double step_ms = 0;     // wall time inside steps, rank 0
  double compute_ms = 0;  // compute lane busy: the largest over ranks
  double comm_ms = 0;     // Σ over collectives of the shortest time over ranks
  double exposed_ms = 0;  // the largest over ranks
  double compute_cpu_ms =
      0;  // CPU time of the compute lane inside stages (its thread's), the largest over ranks
  double comm_cpu_ms = 0;       // CPU time of the comm lane inside stages, the largest over ranks
  double compute_least_ms = 0;  // compute lane busy: the smallest over ranks
  /// 1 − exposed / comm; 1 when nothing was communicated.
  double hidden_share() const { return comm_ms > 0 ? 1.0 - exposed_ms / comm_ms : 1.0; }
  struct Kind {
    std::string kind;
    bool comm = false;
    int64_t count = 0;
    double ms = 0;  // compute: rank 0's; comm: shortest over ranks
  };
  std::vector<Kind> kinds;
  std::vector<LlmStats::Decision> decisions;  // the planner's
};

class RankGroup {
 public:
  /// Loads the model on all ranks; throws the first rank's error. On an MPI rank other than 0 this
  /// works until rank 0 closes its group, then returns null: the caller has nothing more to do.
  /// `progress(fraction)` is called on rank 0 while weights load.
  static std::unique_ptr<RankGroup> start(const RankOptions& options,
                                          const std::function<void(double)>& progress = {});
  virtual ~RankGroup() = default;

  virtual const ModelInfo& info() const = 0;
  virtual const MemoryPlan& memory() const = 0;
  /// Runs a batch that is cut already. Throws Error(kPeer) when a rank failed; the group is of no use after
  /// that.
  virtual StepResult run(const StepBatch& batch) = 0;
  /// Lets the planner cut the batch under `policy`, then runs it. `plan`, where given, gets what it decided.
  virtual StepResult run(StepBatch& batch, const SplitPolicy& policy, Plan* plan = nullptr) = 0;
  /// What the planner decides for a batch; sets its borders and the rest that travels, runs nothing.
  virtual Plan plan(StepBatch& batch, const SplitPolicy& policy) = 0;
  /// Predicted time of a batch as it is cut, ns; 0 when nothing was measured.
  virtual double predict(const StepBatch& batch, CommLanes lanes) = 0;
  /// Measures what stages cost here (some seconds; uses the KV cache, so before there are requests), or takes
  /// it from RankOptions::cost_cache where some steps take what that says. From then on the planner can
  /// decide. Nothing to do for one rank or when nothing can be split.
  virtual void calibrate() = 0;
  /// Where calibrate() keeps what it measured; empty: nowhere.
  virtual std::string cost_file() const = 0;
  /// Forgets it, for another link.
  virtual void forget_costs() = 0;
  /// Where the ranks of this process are, and how many stages they have run together: for a watchdog. From
  /// any thread, also while a rank hangs.
  virtual std::string whereabouts() const = 0;
  virtual uint64_t stages_done() const = 0;
  /// A collective of all ranks: gathers what each measured. Resets nothing.
  virtual RunStats stats() = 0;
  virtual void reset_stats() = 0;
  /// Another link between thread ranks from the next step on; needs RankOptions::link.
  virtual void set_link(const LinkShape& shape) = 0;
  /// Chrome/Perfetto JSON of all ranks' lanes; needs RankOptions::trace.
  virtual void write_trace(const std::string& path) = 0;
};

}  // namespace duet
