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
  // Rows that go through a stage together: all of a micro-batch's, or, in the last layer after the KV
  // write, only those whose logits are wanted, moved to the front.
  struct RowSet {
    int64_t count = 0;
    DeepseekRows v;
    std::vector<int64_t> owned;  // row_offsets of the ranks' shares (all-to-all path)
    std::vector<AttentionSpan> spans;
  };
  // What bodies look up when they run: the rows of one micro-batch and what routing found out.
  struct Part {
    MicroBatch batch;
    RowSet all, wanted;
    const int32_t* token_ids = nullptr;
    ExpertGroups groups;
    std::vector<int32_t> send_counts, receive_counts;  // rows per rank
    std::vector<int64_t> send_bytes, receive_bytes;    // of their choices
    std::vector<int32_t> sent_rows;                    // owned row of each sent row
  };

  void set_wanted(Part& p);

  // stages.cc, in the order of the forward pass.
  void record_embedding(Stages& s);
  void record_attention(Stages& s, const DeepseekLayer& layer, const LatentCache& cache, bool last);
  void record_dense(Stages& s, const DeepseekLayer& layer, RowSet& rows);
  void record_moe_all_reduce(Stages& s, const DeepseekLayer& layer, RowSet& rows);
  void record_moe_all_to_all(Stages& s, const DeepseekLayer& layer, RowSet& rows);
  void record_head(Stages& s);

  void embed(const Part& p, Rows x, int64_t first);
  void attention_inputs(const Part& p, const AttentionWeights& w, const LatentCache& cache);
  void keep_wanted(Part& p);
  void choose_experts(const RowSet& r, const MoeWeights& w, ConstRows h);
  void pack_dispatch(Part& p, const RowSet& r, ConstRows own_rows);
  void dispatch(Part& p, const RowSet& r);
  void combine(Part& p, const RowSet& r);
  void merge(Part& p, const RowSet& r, bool has_shared);
  void local_experts(Part& p, const RowSet& r, const MoeWeights& w, ConstRows x, int64_t rows, Rows out);

  /// This rank's share of the rows in `view`.
  Rows own(const RowSet& r, const Rows& view) const {
    const size_t rank = static_cast<size_t>(shapes_.rank);
    return view.row_slice(r.owned[rank], r.owned[rank + 1] - r.owned[rank]);
  }
  KernelContext& cx() { return cx_; }
  float eps() const { return static_cast<float>(setup_.config.rms_norm_eps); }

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
