#include "model/deepseek/model.h"

#include <algorithm>

#include "model/families.h"

namespace duet {

namespace {

int64_t attention_scratch(const DeepseekShapes& s, int threads) {
  const int64_t widest = std::max({s.attention.q, s.attention.kv, s.q_lora, s.hidden});
  const int64_t deepest = std::max({s.hidden, s.q_lora, s.attention.heads});
  const int64_t product = static_cast<int64_t>(gemm_scratch_bytes(kProjectionRows, widest, deepest, threads));
  return std::max(kProjectionRows * (s.q_lora + s.attention.kv) * 4 + product,
                  static_cast<int64_t>(mla_scratch_bytes(s.mla, threads)));
}

// Prompts up to this size share expansions among their micro-batches and blocks of rows; of longer ones the
// beginning does.
constexpr int64_t kMostTileBytes = int64_t{64} << 20;

int64_t tile_positions(const DeepseekShapes& s, Rounding rounding, const BatchLimits& limits) {
  constexpr int64_t kMany = 1 << 16;
  const int64_t bytes = ExpandedTiles::bytes(s.mla, rounding, kMany);
  return std::min(limits.max_positions, bytes > 0 ? kMostTileBytes * kMany / bytes : 0);
}

DeepseekShapes shapes_of(const ModelSetup& setup) {
  return {setup.config, setup.expert_path, setup.expert_parallel, setup.rank(), setup.ranks()};
}

std::unique_ptr<Model> make_deepseek(const ModelSetup& setup) {
  return std::make_unique<DeepseekModel>(setup, shapes_of(setup));
}

ModelBytes deepseek_bytes(const ModelConfig& c, const MemoryPolicy& policy, ExpertPath path,
                          bool expert_parallel, int rank, int ranks, int threads, const BatchLimits& limits) {
  const DeepseekShapes s(c, path, expert_parallel, rank, ranks);
  const WeightSizes size(c, s, policy);
  const int64_t weights =
      size.decoder([&](const std::string& layer) { return mla_bytes(c, s, size, layer); });
  ModelBytes bytes = decoder_bytes(c, s, policy, limits, threads, weights, attention_scratch(s, threads));
  const Rounding rounding = rounding_of(policy.dtype);
  bytes.activations += ExpandedTiles::bytes(s.mla, rounding, tile_positions(s, rounding, limits));
  return bytes;
}

TensorNames deepseek_tensor_names(const ModelConfig& c) {
  return decoder_tensor_names(
      c, [&](const std::string& layer, TensorNames& names) { add_mla_names(c, layer, names); });
}

}  // namespace

const Family kDeepseek{make_deepseek, deepseek_bytes, deepseek_tensor_names};

DeepseekModel::DeepseekModel(const ModelSetup& setup, const DeepseekShapes& shapes)
    : Decoder(setup, shapes, attention_scratch(shapes, setup.threads())),
      shapes_(shapes),
      tiles_(shapes.mla, rounding_of(setup.memory.dtype),
             tile_positions(shapes, rounding_of(setup.memory.dtype), setup.limits)) {
  load_weights([&](const WeightLoader& load, int64_t layer) {
    attention_.push_back(load_mla(config(), shapes_, load, layer));
  });
}

}  // namespace duet
