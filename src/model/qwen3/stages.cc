// Qwen3 and Qwen3-MoE (arXiv 2505.09388). The forward pass is Decoder::record; on the way into attention:
// projections, a norm of every query and key head, then RoPE. The MoE models have a softmax gate without
// groups, bias or shared experts.
#include "model/gqa.h"

namespace duet {

namespace {

class Qwen3Model final : public GqaDecoder {
 public:
  using GqaDecoder::GqaDecoder;

 private:
  void attention_inputs(const AttentionInput& in, const GqaLayerWeights& w, const PagedCache& kv) override {
    const KeysValues made = project(in, w);
    norm_heads(in.q, w.q_norm);
    norm_heads(made.k, w.k_norm);
    rotate(in, made);
    write(in, made, kv);
  }
};

}  // namespace

constinit const Family kQwen3 = gqa_family<Qwen3Model>();

}  // namespace duet
