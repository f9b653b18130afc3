// Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115). The forward pass is Decoder::record; on the way into
// attention: projections of queries, keys and values with their biases, then RoPE.
#include "model/gqa.h"

namespace duet {

namespace {

class Qwen2Model final : public GqaDecoder {
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

constinit const Family kQwen2 = gqa_family<Qwen2Model>();

}  // namespace duet
