// DeepseekModel: multi-head latent attention and what leads into it (stages.cc); everything else is any
// decoder's.
#pragma once

#include "model/decoder.h"
#include "model/deepseek/weights.h"

namespace duet {

class DeepseekModel final : public Decoder {
 public:
  DeepseekModel(const ModelSetup& setup, const DeepseekShapes& shapes);

 private:
  AttentionParts attention(size_t layer) override;
  void begin_attention() override { tiles_.clear(); }
  void attention_inputs(const AttentionInput& in, const MlaLayerWeights& w, const PagedCache& cache);

  DeepseekShapes shapes_;
  std::vector<MlaLayerWeights> attention_;  // by layer
  ExpandedTiles tiles_;                     // of the compute lane
};

}  // namespace duet
