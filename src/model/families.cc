#include "model/families.h"

#include "base/error.h"
#include "comm/communicator.h"

namespace duet {

namespace {

const Family& family_of(Architecture architecture) {
  switch (architecture) {
    case Architecture::kDeepseekV2:
    case Architecture::kDeepseekV3: return kDeepseek;
    case Architecture::kLlama:
    case Architecture::kMistral:
    case Architecture::kMixtral: return kLlama;
    case Architecture::kQwen2: return kQwen2;
    case Architecture::kQwen3:
    case Architecture::kQwen3Moe: return kQwen3;
  }
  DUET_CHECK(false && "an architecture without a family");
  return kDeepseek;
}

}  // namespace

int ModelSetup::rank() const {
  return comm->rank();
}
int ModelSetup::ranks() const {
  return comm->size();
}

std::unique_ptr<Model> make_model(const ModelSetup& setup) {
  return family_of(setup.config.architecture).make(setup);
}

ModelBytes model_bytes(const ModelConfig& config, const MemoryPolicy& policy, ExpertPath path,
                       bool expert_parallel, int rank, int ranks, int threads, const BatchLimits& limits) {
  return family_of(config.architecture)
      .bytes(config, policy, path, expert_parallel, rank, ranks, threads, limits);
}

std::unordered_set<std::string> model_tensor_names(const ModelConfig& config) {
  return family_of(config.architecture).tensor_names(config);
}

}  // namespace duet
