// Decoder: what the families of models share: embedding, the frame around attention, feed-forward blocks
// (dense and experts on both paths), the head, and the state of a step. A family adds its attention, in its
// own stages.cc. The forward pass is in decoder_stages.cc, experts of the all-to-all path in
// expert_exchange.cc, the rest in decoder.cc.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "model/buffers.h"
#include "model/model.h"
#include "model/weights.h"

namespace duet {

class Decoder : public Model {
 public:
  /// The forward pass (decoder_stages.cc).
  void record(Stages& stages) final;
  void begin_step(const StepBatch& batch) final;
  std::span<const float> logits() const final;
  std::span<const BestToken> best_tokens() const final;
  std::span<const int64_t> expert_rows(int micro_batch) const final {
    return parts_[static_cast<size_t>(micro_batch)].expert_rows;
  }

 protected:
  /// `attention_scratch`: bytes that the projections of kProjectionRows rows and the attention itself take,
  /// the larger of the two.
  Decoder(const ModelSetup& setup, const DecoderShapes& shapes, int64_t attention_scratch);
  /// To be called once by the family's constructor; see WeightLoader::decoder.
  void load_weights(const std::function<void(const WeightLoader& load, int64_t layer)>& attention);

  // Rows that go through a stage together: all of a micro-batch's, or, in the last layer after the KV
  // write, only those whose logits are wanted, moved to the front.
  struct RowSet {
    int64_t count = 0;
    DecoderRows v;
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
    std::vector<int32_t> sent_rows;                    // owned row of each sent row
    std::vector<int64_t> expert_rows;                  // (row, expert) pairs, by layer
  };
  // At most kProjectionRows rows on their way into attention.
  struct AttentionInput {
    ConstRows h;  // normed
    Rows q;       // [rows, attention.q], to be written
    std::span<const int32_t> positions;
    std::span<const int64_t> slots;  // cache rows
  };
  // A family's attention in one layer.
  struct AttentionParts {
    std::span<const float> norm;                        // input_layernorm
    std::function<void(const AttentionInput&)> inputs;  // h → q; keys and values → the cache
    std::function<void(ConstRows q, std::span<const AttentionSpan>, Rows heads)> core;
    const PackedMatrix* out;            // o_proj: yields a partial sum
    std::span<const float> out_bias{};  // of o_proj, added once
  };

  virtual AttentionParts attention(size_t layer) = 0;
  /// The blocks of the cache may hold other tokens than in the step before.
  virtual void begin_attention() {}

  PagedCache cache(size_t layer);
  KernelContext& cx() { return cx_; }
  float eps() const { return static_cast<float>(setup_.config.rms_norm_eps); }
  /// [rows, cols] floats of scratch, until the stage ends.
  Rows scratch_rows(int64_t rows, int64_t cols) {
    return {scratch_.take<float>(static_cast<size_t>(rows * cols)), rows, cols};
  }

  const ModelConfig& config() const { return setup_.config; }
  const RopeTable& rope() const { return rope_; }

 private:
  void set_wanted(Part& p);
  // In the order of the forward pass. The rows that go on after a layer's attention are what it returns.
  void record_embedding(Stages& s);
  RowSet& record_attention(Stages& s, const AttentionParts& attention, bool last);
  void record_feed_forward(Stages& s, const FeedForwardWeights& w, RowSet& rows);
  void record_head(Stages& s);
  void pick_best(const Part& p, const DecoderRows& v);
  void gather_best(const Part& p, const DecoderRows& v);
  void gather_logits(const Part& p, const DecoderRows& v);
  void embed(const Part& p, Rows x, int64_t first);
  void attention_inputs(const Part& p, const AttentionParts& attention);
  void keep_wanted(Part& p);
  void record_dense(Stages& s, const FeedForwardWeights& w, RowSet& rows);
  void record_moe_all_reduce(Stages& s, const FeedForwardWeights& w, RowSet& rows);
  void record_moe_all_to_all(Stages& s, const FeedForwardWeights& w, RowSet& rows);
  void choose_experts(const RowSet& r, const MoeWeights& w, ConstRows h);
  void pack_dispatch(Part& p, const RowSet& r, ConstRows own_rows);
  void dispatch(Part& p, const RowSet& r);
  void received_experts(Part& p, const RowSet& r, const MoeWeights& w, size_t layer);
  void combine(Part& p, const RowSet& r);
  void merge(Part& p, const RowSet& r, bool has_shared);
  void local_experts(Part& p, const RowSet& r, const MoeWeights& w, size_t layer, ConstRows x, int64_t rows,
                     Rows out);

  Part& part_of(const Stages& s) { return parts_[static_cast<size_t>(s.micro_batch())]; }
  /// This rank's share of the rows in `view`.
  Rows own(const RowSet& r, const Rows& view) const {
    const size_t rank = static_cast<size_t>(shapes_.rank);
    return view.row_slice(r.owned[rank], r.owned[rank + 1] - r.owned[rank]);
  }

  ModelSetup setup_;
  DecoderShapes shapes_;
  DecoderWeights weights_;
  RopeTable rope_;
  Arena scratch_;
  KernelContext cx_;
  DecoderBuffers buffers_;
  AlignedBuffer kv_;  // all layers
  int64_t kv_layer_bytes_;
  std::vector<Part> parts_;           // by micro-batch; never moved: bodies hold references
  std::vector<int64_t> head_widths_;  // logits columns of each rank
  std::vector<int64_t> pair_widths_;  // 2 of each rank
  int64_t logits_rows_ = 0;
};

/// Rows that one pass through the input projections takes at a time: long enough for full GEMM
/// speed, short enough to bound the scratch of a 32 768-token step.
inline constexpr int64_t kProjectionRows = 512;

/// Bytes of one rank, from what the family knows: its weights and its attention's scratch. Pure.
ModelBytes decoder_bytes(const ModelConfig& config, const DecoderShapes& shapes, const MemoryPolicy& policy,
                         const BatchLimits& limits, int threads, int64_t weights, int64_t attention_scratch);

}  // namespace duet
