#include "engine/rank_group.h"

#include <fmt/format.h>

#include <condition_variable>
#include <exception>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <sstream>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "comm/job_transport.h"
#include "comm/thread_group.h"
#include "engine/calibration.h"
#include "engine/cost_cache.h"
#include "engine/placement.h"
#include "engine/planner.h"
#include "engine/rank.h"
#include "load/checkpoint.h"
#include "load/shard.h"
#include "load/weights.h"
#include "model/model.h"

namespace duet {

namespace {

ModelConfig config_of(const RankOptions& o) {
  if (o.load_format == LoadFormat::kDummy && !std::filesystem::is_directory(o.model)) {
    std::ifstream file(o.model, std::ios::binary);
    if (!file) throw Error(ErrorKind::kNotFound, o.model + ": no such directory or config.json file");
    std::stringstream text;
    text << file.rdbuf();
    return parse_config(text.str(), o.model);
  }
  return load_config(o.model);
}

// Shared by all ranks of this process.
struct Source {
  std::shared_ptr<const Checkpoint> checkpoint;
  std::unique_ptr<WeightSource> weights;
};

Source open_weights(const RankOptions& o, const ModelConfig& config) {
  Source source;
  if (o.load_format == LoadFormat::kDummy) {
    source.weights = dummy_weights({config.dtype, o.dummy_seed, config.quant});
  } else {
    source.checkpoint = std::make_shared<const Checkpoint>(Checkpoint::open(o.model));
    source.weights = checkpoint_weights(source.checkpoint, config.quant);
    log_audit(audit_tensors(source.weights->names(), config.num_hidden_layers, model_tensor_names(config)));
  }
  if (config.quant.format == WeightFormat::kFp8Block && o.quantization == Quantization::kAsStored) {
    // Published configs ask for fp8 activations ("activation_scheme"); rounding them would only lose digits.
    log_info("{}: weights stay in fp8, activations in floating point whatever activation_scheme says",
             config.quant.layout);
  }
  return source;
}

// A thread that owns one Rank and does what it is handed, in order.
class RankThread {
 public:
  RankThread() : thread_([this] { loop(); }) {}
  ~RankThread() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
  }
  void start(std::function<void()> work) {
    std::lock_guard lock(mutex_);
    work_ = std::move(work);
    busy_ = true;
    error_ = nullptr;
    changed_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !busy_; });
  }
  std::exception_ptr error() {
    std::lock_guard lock(mutex_);
    return error_;
  }
  void call(std::function<void()> work) {
    start(std::move(work));
    wait();
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void loop() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stop_ || work_; });
      if (!work_) return;
      std::function<void()> work = std::move(work_);
      work_ = nullptr;
      lock.unlock();
      std::exception_ptr error;
      try {
        work();
      } catch (...) {
        error = std::current_exception();
      }
      work = nullptr;
      lock.lock();
      error_ = error;
      busy_ = false;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> work_;
  bool busy_ = false, stop_ = false;
  std::exception_ptr error_;
  std::jthread thread_;
};

// What ranks other than 0 do until the group closes.
void serve_commands(Rank& rank) {
  while (true) {
    std::vector<std::byte> command;
    rank.broadcast(command);
    if (command.empty()) throw Error(ErrorKind::kPeer, "rank 0 sent an empty command");
    switch (static_cast<Command>(command.front())) {
      case Command::kStep: {
        // Lives until the step is done: micro-batches point into it.
        const StepBatch batch = deserialize_batch(std::span<const std::byte>(command).subspan(1));
        rank.step(batch);
        break;
      }
      case Command::kStats: rank.stats(); break;
      case Command::kResetStats: rank.reset_stats(); break;
      case Command::kTrace: rank.gather_trace(); break;
      case Command::kClose: return;
    }
  }
}

// Whatever ends a rank early must wake the others, who would wait for it in the next collective.
void serve(Rank& rank) {
  try {
    serve_commands(rank);
  } catch (const std::exception& e) {
    rank.abort(fmt::format("rank {}: {}", rank.rank(), e.what()));
    throw;
  }
}

class Group final : public RankGroup {
 public:
  Group(const RankOptions& options, const std::function<void(double)>& progress) : options_(options) {
    const ModelConfig config = config_of(options);
    const bool whole_experts = options.expert_parallel || options.expert_path == ExpertPath::kAllToAll;
    check_rank_count(config, options.ranks, whole_experts);
    plan_ = plan_memory(options, config);
    info_.config = config;
    info_.dtype = resolve(options.dtype, config.dtype);
    info_.kv_blocks = plan_.kv_blocks;
    info_.block_size = options.block_size;
    const int64_t room = plan_.kv_blocks * options.block_size;
    info_.max_model_len =
        options.max_model_len > 0 ? options.max_model_len : std::min(config.max_position_embeddings, room);
    source_ = open_weights(options, config);
    if (options.backend == Backend::kMpi)
      start_mpi(progress);
    else
      start_threads(progress);
  }

  ~Group() override {
    if (is_root_ && ranks_[0] && !failed_) {
      try {
        threads_[0]->call([this] { command(Command::kClose, {}); });
      } catch (const std::exception& e) {
        log_warning("closing the ranks: {}", e.what());
      }
    }
    for (auto& thread : threads_) thread->wait();
    // Ranks meet while they close (MPI), and each is closed on its own thread.
    for (size_t r = 0; r < threads_.size(); ++r) threads_[r]->start([this, r] { ranks_[r].reset(); });
    for (auto& thread : threads_) thread->wait();
  }

  bool is_root() const { return is_root_; }
  /// MPI ranks other than 0: works until rank 0 closes.
  void work() {
    threads_[0]->wait();
    if (threads_[0]->error()) std::rethrow_exception(threads_[0]->error());
  }

  const ModelInfo& info() const override { return info_; }
  const MemoryPlan& memory() const override { return plan_; }

  StepResult run(const StepBatch& batch) override {
    StepResult result;
    if (!failed_) ranks_[0]->check(batch);  // before anybody is told: a bad batch must not cost the group
    on_rank_0([&](Rank& rank) {
      command(Command::kStep, serialize(batch));
      result = rank.step(batch);
    });
    result.micro_batches = batch.micro_batches();
    return result;
  }

  StepResult run(StepBatch& batch, const SplitPolicy& policy, Plan* plan) override {
    StepResult result;
    if (!failed_) ranks_[0]->check(batch);
    on_rank_0([&](Rank& rank) {
      Plan made = rank.planner().plan(batch, policy);
      command(Command::kStep, serialize(batch));
      result = rank.step(batch, made.reason);
      result.predicted_ns = made.predicted_ns;
      count(made, result.step_ns);
      result.decision = made.kind;
      if (plan) *plan = std::move(made);
    });
    result.micro_batches = batch.micro_batches();
    return result;
  }

  double predict(const StepBatch& batch, CommLanes lanes) override {
    double ns = 0;
    on_rank_0([&](Rank& rank) { ns = rank.planner().predict(batch, lanes); });
    return ns;
  }

  Plan plan(StepBatch& batch, const SplitPolicy& policy) override {
    Plan made;
    on_rank_0([&](Rank& rank) { made = rank.planner().plan(batch, policy); });
    return made;
  }

  void calibrate() override {
    if (options_.ranks < 2 || options_.max_micro_batches < 2) return;
    const CostCache cache = cost_cache();
    if (const std::optional<std::string> kept = cache.read()) {
      bool known = false;
      on_rank_0([&](Rank& rank) { known = rank.planner().load_costs(*kept); });
      const std::string differs =
          known ? costs_differ(*this, options_, info_) : std::string("they are of other stages");
      if (differs.empty()) return;
      log_info("step costs of {}: {}; measured anew", cache.file(), differs);
      forget_costs();
    }
    run_calibration(*this, options_, info_);
    std::string costs;
    on_rank_0([&](Rank& rank) { costs = rank.planner().costs().dump(rank.planner().kinds()); });
    cache.write(costs);
  }

  std::string cost_file() const override { return cost_cache().file(); }

  void forget_costs() override {
    on_rank_0([](Rank& rank) { rank.planner().reset(); });
  }

  std::string whereabouts() const override {
    std::string text;
    for (const auto& rank : ranks_)
      text += fmt::format("{}rank {}: {}", text.empty() ? "" : "; ", rank->rank(), rank->whereabouts());
    return text;
  }

  uint64_t stages_done() const override {
    uint64_t sum = 0;
    for (const auto& rank : ranks_) sum += rank->stages_done();
    return sum;
  }

  RunStats stats() override {
    RunStats total;
    on_rank_0([&](Rank& rank) {
      command(Command::kStats, {});
      total = rank.stats();
    });
    for (const auto& [made, decision] : decisions_) total.decisions.push_back(decision);
    return total;
  }

  void reset_stats() override {
    on_rank_0([&](Rank& rank) {
      command(Command::kResetStats, {});
      rank.reset_stats();
    });
    decisions_.clear();
  }

  void set_link(const LinkShape& shape) override {
    if (!link_) throw Error(ErrorKind::kInvalidArgument, "the ranks were started without a shaped link");
    link_->bytes_per_second = shape.bytes_per_second;
    link_->latency_ns = shape.latency_ns;
  }

  void write_trace(const std::string& path) override {
    if (!options_.trace)
      throw Error(ErrorKind::kInvalidArgument, "no trace was kept; load the model with trace on");
    std::vector<std::string> events;
    on_rank_0([&](Rank& rank) {
      command(Command::kTrace, {});
      events = rank.gather_trace();
    });
    write_chrome_trace(
        path, events,
        fmt::format(R"("ranks":{},"transport":"{}","micro_batches":{},"expert_path":"{}")", options_.ranks,
                    info_.transport, options_.max_micro_batches, to_string(options_.expert_path)));
  }

 private:
  CostCache cost_cache() const {
    return {options_.cost_cache, cost_key(options_, info_, ranks_[0]->machines())};
  }

  void count(const Plan& plan, int64_t step_ns) {
    LlmStats::Decision& d = decisions_[{plan.kind, plan.micro_batches}];
    d.reason = plan.kind;
    d.micro_batches = plan.micro_batches;
    ++d.steps;
    d.predicted_ms += plan.predicted_ns * 1e-6;
    for (const PlanCandidate& c : plan.candidates)
      if (c.micro_batches == 1) d.predicted_whole_ms += c.predicted_ns * 1e-6;
    d.measured_ms += static_cast<double>(step_ns) * 1e-6;
  }

  void command(Command kind, const std::vector<std::byte>& payload) {
    std::vector<std::byte> bytes(payload.size() + 1);
    bytes[0] = static_cast<std::byte>(kind);
    std::copy(payload.begin(), payload.end(), bytes.begin() + 1);
    ranks_[0]->broadcast(bytes);
  }

  void on_rank_0(const std::function<void(Rank&)>& work) {
    if (failed_) throw Error(ErrorKind::kPeer, "the ranks have failed before: " + failure_);
    try {
      threads_[0]->call([&] { work(*ranks_[0]); });
    } catch (...) {
      fail(std::current_exception());
    }
  }

  // A rank that was woken by another's abort only quotes; the one that failed first has the cause.
  [[noreturn]] void fail(std::exception_ptr error) {
    failed_ = true;
    // Rank 0 may have failed before the others heard of anything: they wait for its next command.
    ranks_[0]->abort("rank 0 failed: " + text_of(error));
    for (size_t r = 1; r < threads_.size(); ++r) {
      threads_[r]->wait();
      const std::exception_ptr other = threads_[r]->error();
      if (other && is_quote(error) && !is_quote(other)) error = of_rank(r, other);
    }
    failure_ = text_of(error);
    std::rethrow_exception(error);
  }
  static std::exception_ptr of_rank(size_t rank, const std::exception_ptr& error) {
    return std::make_exception_ptr(
        Error(ErrorKind::kInternal, fmt::format("rank {}: {}", rank, text_of(error))));
  }
  static std::string text_of(const std::exception_ptr& error) {
    try {
      std::rethrow_exception(error);
    } catch (const std::exception& e) {
      return e.what();
    } catch (...) {
      return "unknown error";
    }
  }
  static bool is_quote(const std::exception_ptr& error) {
    try {
      std::rethrow_exception(error);
    } catch (const Error& e) {
      return e.kind() == ErrorKind::kPeer;
    } catch (...) {
      return false;
    }
  }

  void make_rank(size_t index, int threads, const std::vector<int>& own_cores,
                 const std::function<std::unique_ptr<Transport>()>& transport,
                 const std::function<void(double)>& progress) {
    const std::vector<int> all_cores = available_cores();
    if (!own_cores.empty()) pin_this_thread(own_cores.front());
    const std::vector<int> workers =
        own_cores.size() > 1 ? std::vector<int>(own_cores.begin() + 1, own_cores.end()) : std::vector<int>{};
    // The comm lane sleeps nearly always; it may run on any core, also on its own rank's.
    ranks_[index] =
        std::make_unique<Rank>(options_, info_.config, *source_.weights, plan_, info_.max_model_len,
                               all_cores, workers, threads, transport, progress);
  }

  void start_threads(const std::function<void(double)>& progress) {
    const int n = options_.ranks;
    const int threads = resolve_threads(options_);
    const std::vector<int> cores = available_cores();
    const bool pin = static_cast<int>(cores.size()) >= n * threads;
    auto transports = std::make_shared<std::vector<std::unique_ptr<Transport>>>(ThreadGroup::create(n));
    if (options_.link) link_ = std::make_shared<SharedLink>(*options_.link);
    ranks_.resize(static_cast<size_t>(n));
    for (int r = 0; r < n; ++r) threads_.push_back(std::make_unique<RankThread>());
    for (int r = 0; r < n; ++r) {
      std::vector<int> own;
      for (int t = 0; pin && t < threads; ++t) own.push_back(cores[static_cast<size_t>(r * threads + t)]);
      const size_t i = static_cast<size_t>(r);
      threads_[i]->start([this, i, own, threads, transports, progress] {
        make_rank(
            i, threads, own,
            [this, transports, i] {
              std::unique_ptr<Transport> t = std::move((*transports)[i]);
              return link_ ? make_shaped_transport(std::move(t), link_) : std::move(t);
            },
            i == 0 ? progress : nullptr);
      });
    }
    join_start();
    for (int r = 1; r < n; ++r) {
      const size_t i = static_cast<size_t>(r);
      threads_[i]->start([this, i] { serve(*ranks_[i]); });
    }
  }

  void start_mpi(const std::function<void(double)>& progress) {
    if (options_.link)
      throw Error(ErrorKind::kInvalidArgument,
                  "--link-bandwidth and --link-latency shape the link between thread ranks; under MPI the "
                  "network is what it is");
    ranks_.resize(1);
    threads_.push_back(std::make_unique<RankThread>());
    const int threads = resolve_threads(options_);  // where they run is the launcher's binding
    threads_[0]->call([this, threads, progress] {
      make_rank(
          0, threads, {}, [this] { return make_job_transport(options_.comm_transport); }, progress);
    });
    is_root_ = ranks_[0]->rank() == 0;
    take_agreed();
    if (!is_root_) threads_[0]->start([this] { serve(*ranks_[0]); });
  }

  void join_start() {
    std::exception_ptr error;
    for (auto& thread : threads_) {
      thread->wait();
      const std::exception_ptr own = thread->error();
      if (own && (!error || (is_quote(error) && !is_quote(own)))) error = own;
    }
    if (error) {
      failed_ = true;
      std::rethrow_exception(error);
    }
    take_agreed();
  }

  void take_agreed() {
    const Rank& rank = *ranks_[0];
    info_.cpu_level = rank.level();
    info_.transport = rank.transport_name();
    info_.kv_blocks = rank.kv_blocks();
    info_.max_model_len = rank.max_positions();
    plan_.kv_cache = plan_.kv_cache / plan_.kv_blocks * rank.kv_blocks();
    plan_.kv_blocks = rank.kv_blocks();
  }

  RankOptions options_;
  ModelInfo info_;
  MemoryPlan plan_;
  Source source_;
  std::shared_ptr<SharedLink> link_;                                     // between thread ranks, when shaped
  std::map<std::pair<std::string, int>, LlmStats::Decision> decisions_;  // by reason and micro-batches
  bool is_root_ = true;
  bool failed_ = false;
  std::string failure_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::vector<std::unique_ptr<RankThread>> threads_;
};

}  // namespace

std::unique_ptr<RankGroup> RankGroup::start(const RankOptions& options,
                                            const std::function<void(double)>& progress) {
  auto group = std::make_unique<Group>(options, progress);
  if (group->is_root()) return group;
  group->work();
  return nullptr;
}

}  // namespace duet
