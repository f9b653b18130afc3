// Llama 2, 3 and their kin, Mistral (arXiv 2302.13971, 2407.21783, 2310.06825). The forward pass is
// Decoder::record: a norm, grouped-query attention, the residual; a norm, a gated MLP, the residual. On the
// way into attention: projections, with biases where attention_bias asks for them, then RoPE.
#include "model/gqa.h"

namespace duet {

namespace {

class LlamaModel final : public GqaDecoder {
 public:
  using GqaDecoder::GqaDecoder;

 private:
  void attention_inputs(const AttentionInput& in, const GqaLayerWeights& w, const PagedCache& kv) override {
    const KeysValues made = project(in, w);
    rotate(in, made);
    write(in, made, kv);
  }
};

}  // namespace

constinit const Family kLlama = gqa_family<LlamaModel>();

}  // namespace duet
