// Every program that ranks can make is sound, and every fault put into one is objected to: random models of
// the families, rank counts, expert paths, phases, splits and costs, one to six micro-batches.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "comm/communicator.h"
#include "comm/thread_group.h"
#include "engine/planner.h"
#include "engine/probe_batch.h"
#include "engine/program_faults.h"
#include "engine/step_program.h"
#include "model/model.h"
#include "overlap/schedule.h"
#include "overlap/validator.h"

namespace duet {
namespace {

constexpr int kMost = kMostMicroBatches;

// As little arithmetic as the families allow: only the stages count.
std::string random_config(std::mt19937& rng) {
  const auto upto = [&](unsigned low, unsigned high) { return low + rng() % (high - low + 1); };
  const unsigned layers = upto(1, 3);
  if (rng() % 4 == 0) {
    return fmt::format(
        R"({{"architectures": ["LlamaForCausalLM"], "torch_dtype": "float32", "vocab_size": 40, "hidden_size": 16,
        "num_hidden_layers": {}, "max_position_embeddings": 8192, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 4, "intermediate_size": 8}})",
        layers);
  }
  return fmt::format(
      R"({{"architectures": ["DeepseekV3ForCausalLM"], "torch_dtype": "float32", "vocab_size": 40,
      "hidden_size": 16, "num_hidden_layers": {}, "max_position_embeddings": 8192, "num_attention_heads": 4,
      "q_lora_rank": {}, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4,
      "intermediate_size": 8, "moe_intermediate_size": 4, "n_routed_experts": 4, "n_shared_experts": {},
      "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": {}}})",
      layers, rng() % 2 ? "8" : "null", rng() % 2, upto(0, layers));
}

// One rank of a group, without weights that matter and never run: what it records.
class LoneRank {
 public:
  LoneRank(const ModelConfig& config, std::unique_ptr<Transport> transport, ExpertPath path)
      : comm_(std::move(transport), DType::kF32), weights_(dummy_weights({config.dtype, 1, config.quant})) {
    ModelSetup setup;
    setup.config = config;
    setup.weights = weights_.get();
    setup.comm = &comm_;
    setup.memory.dtype = ComputeDtype::kFloat32;
    setup.expert_path = path;
    setup.expert_parallel = path == ExpertPath::kAllToAll;
    setup.limits = {32, 32, config.vocab_size, 64, 8, 16, kMost};
    model_ = make_model(setup);
  }

  const Recording& recording(int micro_batches) {
    Recording& r = recordings_[micro_batches];
    if (r.micro_batches > 0) return r;
    Stages stages;
    for (int m = 0; m < micro_batches; ++m) {
      stages.begin_micro_batch(m);
      model_->record(stages);
    }
    return r = stages.take();
  }

 private:
  Communicator comm_;
  std::unique_ptr<WeightSource> weights_;
  std::unique_ptr<Model> model_;
  std::map<int, Recording> recordings_;
};

// A group of ranks, what its planner decides on random costs, and the program each rank makes of it.
class ProgramMaker {
 public:
  explicit ProgramMaker(unsigned seed) : rng_(seed) {
    config_ = parse_config(random_config(rng_), "random");
    const bool experts = config_.num_moe_layers() > 0;
    path_ = experts && rng_() % 2 ? ExpertPath::kAllToAll : ExpertPath::kAllReduce;
    count_ = 1 << (rng_() % 3);
    for (auto& transport : ThreadGroup::create(count_))
      ranks_.push_back(std::make_unique<LoneRank>(config_, std::move(transport), path_));
    planner_ = std::make_unique<Planner>(
        config_, count_, kMost, [this](int m) -> const Recording& { return ranks_[0]->recording(m); });
    learn();
  }

  std::mt19937& rng() { return rng_; }

  StepBatch batch() {
    ProbeShape shape;
    shape.phase = static_cast<ProbePhase>(rng_() % 3);
    shape.tokens = 1 + rng_() % (rng_() % 2 ? 12 : 900);
    shape.sequences = 1 + rng_() % 5;
    shape.decodes = 1 + rng_() % 40;
    shape.context = rng_() % 300;
    StepBatch batch = probe_batch(shape, 16, config_.vocab_size);
    SplitPolicy policy;
    policy.dbo = static_cast<DboMode>(rng_() % 3);
    policy.thresholds = {2, 2};
    policy.imbalance = 0.01 * static_cast<double>(rng_() % 30);
    policy.micro_batches = rng_() % 2 ? 0 : 1 + static_cast<int>(rng_() % kMost);
    if (rng_() % 5 == 0) policy.split_at = 1 + rng_() % 20;
    planner_->plan(batch, policy);
    return batch;
  }

  std::vector<Program> programs(const StepBatch& batch, double skew) {
    std::vector<Program> programs;
    for (auto& rank : ranks_)
      programs.push_back(step_program(rank->recording(batch.micro_batches()), batch, skew));
    return programs;
  }

 private:
  // Two sizes of step in which every stage took anything from nothing to 100 units.
  void learn() {
    for (int64_t tokens : {8, 200}) {
      ProbeShape shape;
      shape.tokens = tokens;
      shape.sequences = 1;
      const StepBatch batch = probe_batch(shape, 16, config_.vocab_size);
      const Program program = sequential_program(ranks_[0]->recording(1));
      ObservedStep step;
      for (size_t s = 0; s < program.stages.size(); ++s)
        step.busy_ns.push_back(static_cast<float>(rng_() % 10 == 0 ? 0 : (rng_() % 100) * tokens));
      step.step_ns = 1;
      planner_->observe(batch, program, step);
    }
  }

  std::mt19937 rng_;
  ModelConfig config_;
  ExpertPath path_ = ExpertPath::kAllReduce;
  int count_ = 1;
  std::vector<std::unique_ptr<LoneRank>> ranks_;
  std::unique_ptr<Planner> planner_;
};

TEST(Programs, EveryOneIsSoundAndEveryRankMakesTheSame) {
  std::map<int, int> seen;  // by micro-batches
  for (unsigned seed = 0; seed < 30; ++seed) {
    ProgramMaker maker(seed);
    for (int i = 0; i < 10; ++i) {
      const StepBatch batch = maker.batch();
      const double skew = i % 5 == 4 ? 0.5 * (1 + maker.rng()() % 16) : 0.0;
      const std::vector<Program> programs = maker.programs(batch, skew);
      std::vector<std::string> calls;
      for (const Program& p : programs) {
        ASSERT_EQ(validate(p), std::vector<std::string>{}) << to_string(p);
        ASSERT_EQ(hash(p), hash(programs[0]));
        calls.push_back(collectives_in_order(p));
      }
      ASSERT_EQ(validate_meeting(calls), std::vector<std::string>{});
      // The same cut with nothing overlapped, for the price of the split alone.
      StepBatch apart = batch;
      apart.overlap = false;
      ASSERT_EQ(validate(maker.programs(apart, 0)[0]), std::vector<std::string>{});
      ++seen[batch.micro_batches()];
    }
  }
  for (int m = 1; m <= kMost; ++m) EXPECT_GT(seen[m], 3) << m << " micro-batches";
}

TEST(Programs, NoFaultGoesUnnoticed) {
  int harmful = 0;
  for (unsigned seed = 100; seed < 112; ++seed) {
    ProgramMaker maker(seed);
    for (int i = 0; i < 3; ++i) {
      const Program good = maker.programs(maker.batch(), 0)[0];
      expect_objection_to_dropped_events(good);
      expect_objection_to_swapped_collectives(good, maker.rng());
      harmful += expect_objection_to_shared_places(good, maker.rng());
    }
  }
  EXPECT_GT(harmful, 1000);
}

}  // namespace
}  // namespace duet
