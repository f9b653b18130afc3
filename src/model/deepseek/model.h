// DeepseekModel: one rank's shard and its forward pass. stages.cc holds the forward pass, model.cc
// the rest (loading, step state, memory figures).
#pragma once

#include <array>
#include <vector>

#include "model/deepseek/buffers.h"
#include "model/deepseek/weights.h"
#include "model/model.h"

namespace duet {

class DeepseekModel final : public Model {
 public:
  explicit DeepseekModel(const ModelSetup& setup);

  void record(Stages& stages) override;
  void begin_step(const StepBatch& batch) override;
  std::span<const float> logits() const override;

 private:
  // What bodies look up when they run: the rows of one micro-batch and what routing found out.
  struct Part {
    MicroBatch batch;
    DeepseekRows rows;
    const int32_t* token_ids = nullptr;
    ExpertGroups groups;
    std::vector<int32_t> send_counts, receive_counts;  // rows per rank
    std::vector<int32_t> sent_rows;                    // owned row of each sent row
    std::vector<int64_t> head_owned;                   // row_offsets of the logits rows by owner

    Rows own(const Rows& view, int rank) const {
      const int64_t first = batch.owned[static_cast<size_t>(rank)];
      return view.row_slice(first, batch.owned[static_cast<size_t>(rank) + 1] - first);
    }
    Rows own_head(const Rows& view, int rank) const {
      const int64_t first = head_owned[static_cast<size_t>(rank)];
      return view.row_slice(first, head_owned[static_cast<size_t>(rank) + 1] - first);
    }
  };

  // stages.cc, in the order of the forward pass.
  void record_embedding(Stages& s);
  void record_attention(Stages& s, const DeepseekLayer& layer, const LatentCache& cache);
  void record_dense(Stages& s, const DeepseekLayer& layer);
  void record_moe_all_reduce(Stages& s, const DeepseekLayer& layer);
  void record_moe_all_to_all(Stages& s, const DeepseekLayer& layer);
  void record_head(Stages& s);

  void embed(const Part& p, Rows x, int64_t first);
  void attention_inputs(const Part& p, const AttentionWeights& w, const LatentCache& cache);
  void choose_experts(Part& p, const MoeWeights& w, ConstRows h);
  void pack_dispatch(Part& p, ConstRows own);
  void dispatch(Part& p);
  void combine(Part& p);
  void merge(Part& p, bool has_shared);
  void local_experts(Part& p, const MoeWeights& w, ConstRows x, int64_t rows, Rows out);
  void head_inputs(const Part& p);

  Rows own(const Part& p, const Rows& view) const { return p.own(view, shapes_.rank); }
  KernelContext& cx() { return cx_; }

  ModelSetup setup_;
  DeepseekShapes shapes_;
  DeepseekWeights weights_;
  RopeTable rope_;
  Arena scratch_;
  KernelContext cx_;
  DeepseekBuffers buffers_;
  AlignedBuffer kv_;                  // all layers
  std::vector<LatentCache> caches_;   // by layer
  std::vector<Part> parts_;           // by micro-batch; never moved: bodies hold references
  std::vector<int64_t> head_widths_;  // logits columns of each rank
  int64_t logits_rows_ = 0;
};

/// Rows that one pass through the input projections takes at a time: long enough for full GEMM
/// speed, short enough to bound the scratch of a 32 768-token step.
inline constexpr int64_t kProjectionRows = 512;

}  // namespace duet
