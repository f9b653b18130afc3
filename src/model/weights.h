// One rank's packed weights of a decoder: what every family has, and the tools with which a family loads
// what is its own. Loaded once, on the rank's own thread (first touch); every matrix is sliced by the
// shapes before it is read. Sizes and names follow the same rules without reading an element.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "kernels/ops.h"
#include "load/weights.h"
#include "model/options.h"
#include "model/shapes.h"

namespace duet {

struct MoeWeights {
  PackedMatrix gate;                // [experts, hidden], read with unrounded activations
  std::vector<float> bias;          // e_score_correction_bias; empty with softmax gates
  std::vector<MlpWeights> experts;  // local ones
  MlpWeights shared;
  bool has_shared = false;
};

/// What follows attention in a layer.
struct FeedForwardWeights {
  std::vector<float> norm;  // post_attention_layernorm
  bool moe = false;
  MlpWeights dense;   // moe == false
  MoeWeights routed;  // moe == true
};

struct DecoderWeights {
  std::unique_ptr<EmbeddingTable> embedding;     // rows are read where they lie, on every rank
  std::vector<FeedForwardWeights> feed_forward;  // by layer
  std::vector<float> final_norm;
  PackedMatrix head;  // [vocab_rows, hidden]
};

/// What a weight is for decides what becomes of it.
enum class WeightRole : uint8_t {
  kLinear,
  kLatent,  // kv_b_proj: its inputs are read from the cache, never quantised
  kHead,
  kGate,  // chooses experts: stays as stored
};
/// How `stored` is packed.
PackAs pack_as(const MemoryPolicy& policy, WeightRole role, const WeightView& stored);

/// "model.layers.<index>."
std::string layer_prefix(int64_t index);

class WeightLoader {
 public:
  WeightLoader(const ModelConfig& config, const DecoderShapes& shapes, const WeightSource& source,
               const MemoryPolicy& policy)
      : c_(config), s_(shapes), source_(source), policy_(policy) {}

  const WeightSource& source() const { return source_; }
  const MemoryPolicy& policy() const { return policy_; }

  /// Rows [row_slice), columns [col_slice) of the [rows, cols] matrix `name`; without slices the whole.
  PackedMatrix pack(const std::string& name, int64_t rows, int64_t cols) const;
  PackedMatrix pack(const std::string& name, int64_t rows, int64_t cols, Slice row_slice, Slice col_slice,
                    WeightRole role = WeightRole::kLinear) const;
  /// Everything that families share. `attention(layer)` loads a layer's attention, in order.
  DecoderWeights decoder(const std::function<void(int64_t layer)>& attention,
                         const std::function<void(double)>& progress) const;

 private:
  MlpWeights mlp(const std::string& prefix, const ExpertNames& names, int64_t intermediate,
                 Slice columns) const;
  MoeWeights moe(const std::string& layer) const;
  FeedForwardWeights feed_forward(int64_t index) const;

  const ModelConfig& c_;
  const DecoderShapes& s_;
  const WeightSource& source_;
  const MemoryPolicy& policy_;
};

/// Bytes of one rank's weights by the rules that WeightLoader follows, from names and sizes alone.
class WeightSizes {
 public:
  WeightSizes(const ModelConfig& config, const DecoderShapes& shapes, const MemoryPolicy& policy)
      : c_(config), s_(shapes), policy_(policy) {}

  /// Rows [rows), columns [cols) of `module` ("model.layers.0.self_attn.o_proj").
  int64_t matrix(const std::string& module, Slice rows, Slice cols,
                 WeightRole role = WeightRole::kLinear) const;
  /// A view without elements, but with the type and the grid of scales that the checkpoint has.
  WeightView stored(const std::string& module, Slice rows, Slice cols) const;
  /// `v` packed.
  int64_t bytes(const WeightView& v, WeightRole role) const { return bytes(v, pack_as(policy_, role, v)); }
  static int64_t bytes(const WeightView& v, PackAs as);
  const MemoryPolicy& policy() const { return policy_; }
  /// All of a rank (the embedding, which stays in the mapping, not counted). Pure.
  int64_t decoder(const std::function<int64_t(const std::string& layer)>& attention) const;

 private:
  int64_t mlp(const std::string& prefix, const ExpertNames& names, Slice columns) const;

  const ModelConfig& c_;
  const DecoderShapes& s_;
  const MemoryPolicy& policy_;
};

using TensorNames = std::unordered_set<std::string>;
/// Every tensor name that the model reads on any rank, for the audit of a checkpoint. `attention` adds
/// those of one layer's attention.
TensorNames decoder_tensor_names(
    const ModelConfig& config, const std::function<void(const std::string& layer, TensorNames&)>& attention);

}  // namespace duet
