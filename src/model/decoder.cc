#include "model/decoder.h"

#include <algorithm>

#include "base/error.h"
#include "comm/communicator.h"
#include "model/rope_table.h"

namespace duet {

namespace {

int64_t scratch_bytes(const DecoderShapes& s, int threads, int64_t attention_scratch) {
  const int64_t widest =
      std::max({s.attention.q, s.attention.heads, s.hidden, s.vocab_rows.size(), int64_t{s.gate.experts}});
  const int64_t deepest = std::max(s.hidden, s.attention.heads);
  const int64_t product = static_cast<int64_t>(gemm_scratch_bytes(kProjectionRows, widest, deepest, threads));
  // Stages run one after the other and wind the scratch back: the largest need is the need.
  const int64_t gate = kProjectionRows * s.gate.experts * 4 + product;
  const int64_t ffn =
      static_cast<int64_t>(std::max({mlp_scratch_bytes(s.hidden, s.dense_columns.size(), threads),
                                     mlp_scratch_bytes(s.hidden, s.shared_columns.size(), threads),
                                     experts_scratch_bytes(s.hidden, s.expert_columns.size(), threads)}));
  return std::max({gate, ffn, attention_scratch}) + 64 * 64;
}

int64_t kv_bytes_per_block(const DecoderShapes& s, const BatchLimits& limits, const MemoryPolicy& policy) {
  const DType type = kv_dtype(policy);
  if (type == DType::kI8) return limits.block_size * s.attention.kv_int8_bytes;
  return limits.block_size * s.attention.kv * static_cast<int64_t>(dtype_bytes(type));
}

}  // namespace

Decoder::Decoder(const ModelSetup& setup, const DecoderShapes& shapes, int64_t attention_scratch)
    : setup_(setup),
      shapes_(shapes),
      rope_(make_rope_table(setup.config.rope, shapes.attention.rope_dim, setup.limits.max_positions)),
      scratch_(static_cast<size_t>(scratch_bytes(shapes, setup.threads(), attention_scratch))),
      cx_{setup.level, setup.pool, &scratch_, rounding_of(setup.memory.dtype)},
      buffers_(shapes_, setup.limits),
      kv_layer_bytes_(setup.limits.kv_blocks * kv_bytes_per_block(shapes, setup.limits, setup.memory)) {
  DUET_CHECK(setup.weights && setup.comm && setup.memory.dtype != ComputeDtype::kAuto);
  kv_ = AlignedBuffer(static_cast<size_t>(kv_layer_bytes_ * shapes_.layers));
  for (int r = 0; r < shapes_.ranks; ++r)
    head_widths_.push_back(shard(shapes_.vocab, r, shapes_.ranks).size());
  pair_widths_.assign(static_cast<size_t>(shapes_.ranks), 2);
  parts_.resize(static_cast<size_t>(setup.limits.max_micro_batches));
  for (Part& p : parts_) {
    p.send_counts.resize(static_cast<size_t>(shapes_.ranks));
    p.receive_counts.resize(static_cast<size_t>(shapes_.ranks));
    p.expert_rows.resize(static_cast<size_t>(setup.config.num_hidden_layers));
    if (shapes_.all_to_all) p.sent_rows.reserve(static_cast<size_t>(setup.limits.max_rows + shapes_.ranks));
  }
}

void Decoder::load_weights(const std::function<void(const WeightLoader& load, int64_t layer)>& attention) {
  const WeightLoader load(setup_.config, shapes_, *setup_.weights, setup_.memory);
  weights_ = load.decoder([&](int64_t layer) { attention(load, layer); }, setup_.progress);
}

PagedCache Decoder::cache(size_t layer) {
  return {kv_.data() + static_cast<int64_t>(layer) * kv_layer_bytes_, kv_dtype(setup_.memory),
          setup_.limits.block_size};
}

void Decoder::begin_step(const StepBatch& batch) {
  std::vector<MicroBatch> cut = cut_batch(batch, setup_.limits.block_size, shapes_.ranks);
  DUET_CHECK(cut.size() <= parts_.size());
  for (size_t m = 0; m < cut.size(); ++m) {
    Part& p = parts_[m];
    p.batch = std::move(cut[m]);
    p.token_ids = batch.token_ids.data() + p.batch.first_row;
    p.all.count = p.batch.rows;
    p.all.v = buffers_.rows_of(p.batch, static_cast<int>(m));
    p.all.owned = p.batch.owned;
    p.all.spans = p.batch.spans;
    set_wanted(p);
  }
  logits_rows_ = static_cast<int64_t>(batch.logits_rows.size());
  begin_attention();
}

// The rows whose logits are wanted, as a set of their own at the front of the micro-batch's buffers.
// They keep their owners, so shares may be uneven or empty.
void Decoder::set_wanted(Part& p) {
  const std::vector<int64_t>& rows = p.batch.logits_rows;
  RowSet& w = p.wanted;
  w.count = static_cast<int64_t>(rows.size());
  w.v = p.all.v;
  for (Rows* view : {&w.v.x, &w.v.h, &w.v.q, &w.v.heads, &w.v.part}) *view = view->row_slice(0, w.count);
  w.owned.clear();
  for (int64_t border : p.all.owned)
    w.owned.push_back(std::lower_bound(rows.begin(), rows.end(), border) - rows.begin());
  w.spans.clear();
  size_t i = 0;
  for (const AttentionSpan& span : p.all.spans) {
    for (; i < rows.size() && rows[i] < span.first_row + span.rows; ++i) {
      if (i > 0 && !w.spans.empty() && rows[i] == rows[i - 1] + 1 && rows[i] > span.first_row) {
        ++w.spans.back().rows;
      } else {
        w.spans.push_back({static_cast<int64_t>(i), 1, span.start_position + rows[i] - span.first_row,
                           span.form, span.block_table});
      }
    }
  }
}

std::span<const BestToken> Decoder::best_tokens() const {
  if (!buffers_.best()) return {};
  return {buffers_.best(), static_cast<size_t>(logits_rows_)};
}

std::span<const float> Decoder::logits() const {
  if (!buffers_.logits()) return {};
  return {buffers_.logits(), static_cast<size_t>(logits_rows_ * shapes_.vocab)};
}

ModelBytes decoder_bytes(const ModelConfig& c, const DecoderShapes& s, const MemoryPolicy& policy,
                         const BatchLimits& limits, int threads, int64_t weights, int64_t attention_scratch) {
  const int64_t element = static_cast<int64_t>(dtype_bytes(weight_dtype(policy.dtype, c.dtype)));
  ModelBytes bytes;
  bytes.weights = weights +
                  // The embedding is read where it lies; count it once per machine, as page cache.
                  (s.rank == 0 ? c.vocab_size * c.hidden_size * element : 0) +
                  limits.max_positions * s.attention.rope_dim * 4;
  bytes.kv_per_block = s.layers * kv_bytes_per_block(s, limits, policy);
  bytes.activations = BufferSizes(s, limits).bytes();
  bytes.scratch = scratch_bytes(s, threads, attention_scratch);
  bytes.max_collective_elements = std::max(limits.max_rows * s.hidden, limits.max_logits_rows * s.vocab);
  // Every token of a step on one rank's experts, once; what a rank sends is never more.
  // Its choice travels with it, in elements of two bytes.
  bytes.max_all_to_all_elements =
      s.all_to_all ? (limits.max_rows + s.ranks) * (s.hidden + choice_bytes(s.top_k) / 2) : 0;
  return bytes;
}

}  // namespace duet
