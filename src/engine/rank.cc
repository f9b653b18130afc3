#include "engine/rank.h"

#include <fmt/format.h>
#include <chrono>
#include <cstdlib>
#include <stdexcept>
#include <thread>

#include <algorithm>
#include <cstring>
#include <exception>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "engine/cost_cache.h"
#include "engine/planner.h"
#include "engine/rank_hello.h"
#include "engine/step_program.h"
#include "overlap/validator.h"

namespace duet {

namespace {

// The compiler and the moment of this file's compilation stand for the build: ranks of different
// builds may differ in layouts and rounding, and must not be mixed.
constexpr char kBuildId[] = __VERSION__ " " __DATE__ " " __TIME__;

// A trace beyond this many slices opens in no viewer.
constexpr size_t kMaxTracedStages = size_t{1} << 20;

/// Ranks meet before each collective: the first to come would have sent already what the last one then finds,
/// and the collective would look shorter than the network is. What the meetings take is added to `met_ns`.
std::vector<StageBody> in_lockstep(const Recording& r, Communicator& comm, std::span<StageTime> times,
                                   int64_t& met_ns) {
  std::vector<StageBody> bodies = r.bodies;
  for (size_t s = 0; s < bodies.size(); ++s)
    if (r.stages[s].lane == Lane::kComm)
      bodies[s] = [&comm, &met_ns, &time = times[s], body = r.bodies[s]] {
        comm.barrier();
        const int64_t begin = now_ns();
        met_ns += begin - time.start_ns;
        time.start_ns = begin;
        body();
      };
  return bodies;
}

}  // namespace

Rank::Rank(const RankOptions& options, const ModelConfig& config, const WeightSource& weights,
           const MemoryPlan& plan, int64_t max_positions, const std::vector<int>& lane_cores,
           const std::vector<int>& worker_cores, int threads,
           const std::function<std::unique_ptr<Transport>()>& make_transport,
           const std::function<void(double)>& progress)
    : options_(options), lane_(lane_cores), pool_(threads, worker_cores) {
  lane_.call([&] { comm_ = std::make_unique<Communicator>(make_transport(), options.wire); });
  try {
    Hello own = make_hello(options, config, kBuildId);
    std::string failure;
    // Found here and told to all: a rank that just left would be waited for.
    const auto noting_failure = [&](const auto& work) {
      try {
        work();
      } catch (const std::exception& e) {
        failure = e.what();
        own.failed = 1;
        std::strncpy(own.text, failure.c_str(), sizeof(own.text) - 1);
      }
    };
    noting_failure([&] { level_ = active_cpu_level(); });
    own.kv_blocks = plan.kv_blocks;
    own.max_positions = max_positions;
    own.level = static_cast<uint32_t>(level_);
    const Hello all = agree(own, failure);
    limits_ = {options.max_batched_tokens, options.max_logits_rows, config.vocab_size,
               all.max_positions,          all.kv_blocks,           options.block_size,
               options.max_micro_batches};
    ModelSetup setup;
    setup.config = config;
    setup.weights = &weights;
    setup.comm = comm_.get();
    setup.level = level_;
    setup.pool = &pool_;
    setup.memory = memory_policy(options, config);
    setup.expert_path = options.expert_path;
    setup.expert_parallel = options.expert_parallel;
    setup.limits = limits_;
    setup.progress = progress;
    noting_failure([&] {
      const ModelBytes bytes = model_bytes(config, setup.memory, options.expert_path, options.expert_parallel,
                                           comm_->rank(), comm_->size(), threads, limits_);
      comm_->reserve(bytes.max_collective_elements, bytes.max_all_to_all_elements);
      model_ = make_model(setup);
    });
    agree(own, failure);
    prepare_all();
    if (options.max_micro_batches > 1) {
      const std::string machine = describe_machine(level_, threads);
      for (int r = 0; r < comm_->size(); ++r) machines_.push_back(text_of(r, machine));
    }
    if (comm_->rank() == 0)
      planner_ = std::make_unique<Planner>(config, comm_->size(), options.max_micro_batches,
                                           [this](int m) -> const Recording& { return recording(m); });
    lane_.call([&] {
      comm_->barrier();
      origin_ns_ = now_ns();
    });
  } catch (...) {
    // Members are destroyed on this thread, but the transport belongs to the comm lane.
    lane_.call([&] { comm_.reset(); });
    throw;
  }
}

Rank::~Rank() {
  model_.reset();
  lane_.call([&] { comm_.reset(); });
}

// Exchanges a word with every rank: same build and settings, lowest CPU level, least room, did
// anybody fail. All throw together, so none waits for a rank that has given up.
Hello Rank::agree(const Hello& own, const std::string& failure) {
  std::vector<Hello> all(static_cast<size_t>(comm_->size()));
  lane_.call([&] {
    comm_->all_gather_bytes(std::as_bytes(std::span<const Hello>(&own, 1)),
                            std::as_writable_bytes(std::span<Hello>(all)));
  });
  Hello least = own;
  for (size_t r = 0; r < all.size(); ++r) {
    Hello& other = all[r];
    if (other.failed) {
      // A rank's own error keeps its full text; the others quote it.
      if (static_cast<int>(r) == comm_->rank() || all.size() == 1)
        throw Error(ErrorKind::kInvalidArgument, failure);
      other.text[sizeof(other.text) - 1] = 0;
      throw Error(ErrorKind::kPeer, fmt::format("rank {}: {}", r, other.text));
    }
    if (std::strncmp(other.build, own.build, sizeof(own.build)) != 0) {
      throw Error(
          ErrorKind::kPeer,
          fmt::format(
              "rank {} runs another build of duet ({}) than rank {} ({}); install the same one on all hosts",
              r, other.build, comm_->rank(), own.build));
    }
    const std::string difference = settings_difference(own, comm_->rank(), other, static_cast<int>(r));
    if (!difference.empty()) throw Error(ErrorKind::kPeer, difference);
    level_ = std::min(level_, static_cast<CpuLevel>(other.level));
    least.kv_blocks = std::min(least.kv_blocks, other.kv_blocks);
    least.max_positions = std::min(least.max_positions, other.max_positions);
  }
  return least;
}

void Rank::check_same_program(const Program& program) {
  const uint64_t own = hash(program);
  std::vector<uint64_t> all(static_cast<size_t>(comm_->size()));
  lane_.call([&] {
    comm_->all_gather_bytes(std::as_bytes(std::span<const uint64_t>(&own, 1)),
                            std::as_writable_bytes(std::span<uint64_t>(all)));
  });
  const auto other = std::find_if(all.begin(), all.end(), [&](uint64_t h) { return h != all[0]; });
  if (other == all.end()) return;
  // Every rank is here: say which collectives would have waited for each other.
  std::vector<std::string> calls;
  for (int r = 0; r < comm_->size(); ++r) calls.push_back(text_of(r, collectives_in_order(program)));
  const std::vector<std::string> defects = validate_meeting(calls);
  throw Error(ErrorKind::kPeer,
              fmt::format("rank {} made another {} program than rank 0 ({:016x}, {:016x}){}. Give every rank "
                          "the same flags and model",
                          other - all.begin(), program.schedule, *other, all[0],
                          defects.empty() ? "" : "; " + defects.front()));
}

void Rank::prepare_all() {
  try {
    for (int m = 1; m <= options_.max_micro_batches; ++m) {
      StepBatch batch;  // only its shape matters here: m micro-batches, no costs known
      for (int b = 0; b <= m; ++b) batch.borders.push_back(b);
      batch.overlap = m > 1;
      prepare(batch);
    }
  } catch (const std::exception& e) {
    const auto* error = dynamic_cast<const Error*>(&e);
    // kPeer: all ranks have seen the same difference and throw too.
    if (!error || error->kind() != ErrorKind::kPeer) comm_->abort(e.what());
    throw;
  }
}

const Recording& Rank::recording(int micro_batches) {
  Recording& recording = recordings_[micro_batches];
  if (recording.micro_batches == 0) {
    Stages stages;
    for (int m = 0; m < micro_batches; ++m) {
      stages.begin_micro_batch(m);
      model_->record(stages);
    }
    recording = stages.take();
  }
  return recording;
}

// Everything that decides comes with the batch, so every rank takes the same branch and makes the same
// program; the hashes are compared all the same.
Rank::Prepared& Rank::prepare(const StepBatch& batch) {
  const bool searched = batch.overlap && options_.skew <= 0 && !batch.stage_ns.empty();
  std::vector<float> costs;
  if (searched) {
    costs = batch.stage_ns;
    costs.push_back(batch.stolen);
  }
  const std::tuple<int, bool, std::vector<float>> key{batch.micro_batches(), batch.overlap, costs};
  if (const auto found = programs_.find(key); found != programs_.end()) return found->second;
  constexpr size_t kMaxPrograms = 64;
  if (programs_.size() >= kMaxPrograms) programs_.clear();
  Program program = step_program(recording(batch.micro_batches()), batch, options_.skew);
  const std::vector<std::string> defects = validate(program);
  if (!defects.empty())
    throw Error(ErrorKind::kInternal, "the schedule made an unsound program: " + defects.front());
  check_same_program(program);
  Prepared& p = programs_[key];
  p.plan = std::make_unique<LanePlan>(program);
  p.times.resize(program.stages.size());
  p.program = std::make_shared<const Program>(std::move(program));
  return p;
}

void Rank::broadcast(std::vector<std::byte>& command) {
  if (comm_->size() == 1) return;
  lane_.call([&] { comm_->broadcast(command, 0); });
}

std::string Rank::whereabouts() const {
  std::shared_ptr<const Program> program;
  {
    std::lock_guard lock(watch_mutex_);
    program = watched_;
  }
  const auto lane = [&](Lane which) {
    const int stage = progress_.stage[static_cast<size_t>(which)].load(std::memory_order_relaxed);
    const bool inside = program && stage >= 0 && stage < static_cast<int>(program->stages.size());
    return inside ? "in " + stage_label(program->stages[static_cast<size_t>(stage)]) : std::string("waits");
  };
  return fmt::format("compute lane {}, comm lane {}", lane(Lane::kCompute), lane(Lane::kComm));
}

// DUET_FAULT_DRILL=RANK:STEP:throw|hang: the compute lane of that rank fails or hangs in the middle of that
// step, so that what then happens can be rehearsed.
void Rank::drill(std::vector<StageBody>& bodies) {
  const char* asked = std::getenv("DUET_FAULT_DRILL");
  if (!asked) return;
  const std::string text = asked, prefix = fmt::format("{}:{}:", comm_->rank(), steps_);
  if (!text.starts_with(prefix)) return;
  const std::vector<int>& order = watched_->lane_order(Lane::kCompute);
  bodies[static_cast<size_t>(order[order.size() / 2])] = [hang = text.substr(prefix.size()) == "hang"] {
    if (!hang) throw std::runtime_error("DUET_FAULT_DRILL says so");
    while (true) std::this_thread::sleep_for(std::chrono::hours(1));
  };
}

StepResult Rank::step(const StepBatch& batch, const std::string& decision) {
  try {
    check_batch(batch, limits_);
    Prepared& p = prepare(batch);
    model_->begin_step(batch);
    const Recording& r = recording(batch.micro_batches());
    {
      std::lock_guard lock(watch_mutex_);
      watched_ = p.program;
    }
    int64_t met_ns = 0;
    std::vector<StageBody> changed =
        batch.lockstep ? in_lockstep(r, *comm_, p.times, met_ns) : std::vector<StageBody>{};
    ++steps_;
    if (std::getenv("DUET_FAULT_DRILL")) {
      if (changed.empty()) changed = r.bodies;
      drill(changed);
    }
    const int64_t start = now_ns();
    const std::vector<StageBody>& bodies = changed.empty() ? r.bodies : changed;
    const auto on_failure = [this] {
      comm_->abort(fmt::format("rank {} failed during a step", comm_->rank()));
    };
    int64_t tail = 0;
    if (comm_->size() == 1) {
      run_alone(*p.plan, bodies, p.times, on_failure, &progress_);
    } else {
      tail = run_program(*p.plan, bodies, lane_, p.times, on_failure, &progress_);
    }
    StepResult result;
    result.step_ns = now_ns() - start - met_ns;
    std::tie(result.exposed_ns, result.comm_ns) = stats_.add(*p.program, p.times, result.step_ns, tail);
    result.overlapped = batch.overlap;
    result.program = p.program;
    result.times = p.times;
    if (batch.observe) observe(batch, p, result);
    if (stats_.full()) lane_.call([&] { stats_.fold(*comm_); });
    if (options_.trace && traced_stages_ < kMaxTracedStages) {
      traced_stages_ += p.times.size();
      TracedStep traced{static_cast<int64_t>(traced_.size()), p.program, p.times, {}, decision, {}};
      for (size_t m = 1; m < batch.borders.size(); ++m) {
        traced.rows.push_back(batch.borders[m] - batch.borders[m - 1]);
        const std::span<const int64_t> experts = model_->expert_rows(static_cast<int>(m) - 1);
        traced.expert_rows.emplace_back(experts.begin(), experts.end());
      }
      traced_.push_back(std::move(traced));
      if (traced_stages_ >= kMaxTracedStages)
        log_warning("the trace is full after {} steps; later steps are not in it", traced_.size());
    }
    result.logits = model_->logits();
    result.best = model_->best_tokens();
    return result;
  } catch (const std::exception& e) {
    comm_->abort(fmt::format("rank {}: {}", comm_->rank(), e.what()));
    throw;
  }
}

// Gathers every rank's times of the step that just ran.
void Rank::observe(const StepBatch& batch, const Prepared& p, const StepResult& result) {
  const size_t stages = p.times.size(), ranks = static_cast<size_t>(comm_->size());
  std::vector<float> own, all(stages * ranks);
  own.reserve(stages);
  for (const StageTime& time : p.times) own.push_back(static_cast<float>(time.end_ns - time.start_ns));
  lane_.call([&] {
    comm_->all_gather_bytes(std::as_bytes(std::span<const float>(own)),
                            std::as_writable_bytes(std::span<float>(all)));
  });
  if (comm_->rank() != 0) return;
  ObservedStep step;
  step.step_ns = static_cast<double>(result.step_ns);
  step.exposed_ns = static_cast<double>(result.exposed_ns);
  for (size_t s = 0; s < stages; ++s) {
    float busy = all[s];
    for (size_t r = 1; r < ranks; ++r) {
      const float other = all[r * stages + s];
      busy = p.program->stages[s].lane == Lane::kComm ? std::min(busy, other) : std::max(busy, other);
    }
    step.busy_ns.push_back(busy);
  }
  planner_->observe(batch, *p.program, step);
}

RunStats Rank::stats() {
  RunStats total;
  lane_.call([&] { total = stats_.total(*comm_); });
  return total;
}

void Rank::reset_stats() {
  stats_.reset();
}

std::vector<std::string> Rank::gather_trace() {
  std::vector<std::string> texts;
  const std::string own = chrome_events(comm_->rank(), traced_, origin_ns_);
  for (int r = 0; r < comm_->size(); ++r) {
    std::string text = text_of(r, own);
    if (comm_->rank() == 0) texts.push_back(std::move(text));
  }
  return texts;
}

std::string Rank::text_of(int rank, const std::string& own) {
  std::vector<std::byte> bytes;
  const auto* data = reinterpret_cast<const std::byte*>(own.data());
  if (rank == comm_->rank()) bytes.assign(data, data + own.size());
  lane_.call([&] { comm_->broadcast(bytes, rank); });
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace duet
