#include "model/deepseek/model.h"

#include <algorithm>

#include "base/error.h"
#include "comm/communicator.h"

namespace duet {

namespace {

int64_t scratch_bytes(const DeepseekConfig& c, const DeepseekShapes& s, int threads) {
  const int64_t widest = std::max(
      {s.q_width, s.kv_width, s.q_lora, s.hidden, s.vocab_rows.size(), c.n_routed_experts, s.heads_width});
  const int64_t deepest = std::max({s.hidden, s.q_lora, s.heads_width});
  const int64_t product = static_cast<int64_t>(gemm_scratch_bytes(kProjectionRows, widest, deepest, threads));
  // Stages run one after the other and wind the scratch back: the largest need is the need.
  const int64_t projections = kProjectionRows * (s.q_lora + s.kv_width + c.n_routed_experts) * 4 + product;
  const int64_t ffn =
      static_cast<int64_t>(std::max({mlp_scratch_bytes(s.hidden, s.dense_columns.size(), threads),
                                     mlp_scratch_bytes(s.hidden, s.shared_columns.size(), threads),
                                     experts_scratch_bytes(s.hidden, s.expert_columns.size(), threads)}));
  const int64_t attention = static_cast<int64_t>(mla_scratch_bytes(s.mla, threads));
  return std::max({projections, ffn, attention}) + 64 * 64;
}

ModelSetup with_threads(ModelSetup setup) {
  DUET_CHECK(setup.weights && setup.comm && setup.dtype != ComputeDtype::kAuto);
  return setup;
}

}  // namespace

DeepseekModel::DeepseekModel(const ModelSetup& setup)
    : setup_(with_threads(setup)),
      shapes_(setup.config, setup.expert_path, setup.expert_parallel, setup.comm->rank(), setup.comm->size()),
      weights_(load_deepseek(setup.config, shapes_, *setup.weights, setup.dtype, setup.progress)),
      rope_(make_rope_table(setup.config.rope, setup.config.qk_rope_head_dim, setup.limits.max_positions)),
      scratch_(
          static_cast<size_t>(scratch_bytes(setup.config, shapes_, setup.pool ? setup.pool->threads() : 1))),
      cx_{setup.level, setup.pool, &scratch_, rounding_of(setup.dtype)},
      buffers_(shapes_, setup.limits) {
  const DType dtype = kv_dtype(setup.dtype);
  const int64_t layer_bytes = setup.limits.kv_blocks * setup.limits.block_size * shapes_.kv_width *
                              static_cast<int64_t>(dtype_bytes(dtype));
  kv_ = AlignedBuffer(static_cast<size_t>(layer_bytes * setup.config.num_hidden_layers));
  for (int64_t l = 0; l < setup.config.num_hidden_layers; ++l) {
    caches_.push_back({kv_.data() + l * layer_bytes, dtype, setup.limits.block_size});
  }
  for (int r = 0; r < shapes_.ranks; ++r)
    head_widths_.push_back(shard(shapes_.vocab, r, shapes_.ranks).size());
  parts_.resize(static_cast<size_t>(setup.limits.max_micro_batches));
  for (Part& p : parts_) {
    p.send_counts.resize(static_cast<size_t>(shapes_.ranks));
    p.receive_counts.resize(static_cast<size_t>(shapes_.ranks));
    p.send_bytes.resize(static_cast<size_t>(shapes_.ranks));
    p.receive_bytes.resize(static_cast<size_t>(shapes_.ranks));
    if (shapes_.all_to_all) p.sent_rows.reserve(static_cast<size_t>(setup.limits.max_rows + shapes_.ranks));
  }
}

void DeepseekModel::begin_step(const StepBatch& batch) {
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
}

// The rows whose logits are wanted, as a set of their own at the front of the micro-batch's buffers.
// They keep their owners, so shares may be uneven or empty.
void DeepseekModel::set_wanted(Part& p) {
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

std::span<const float> DeepseekModel::logits() const {
  if (!buffers_.logits()) return {};
  return {buffers_.logits(), static_cast<size_t>(logits_rows_ * shapes_.vocab)};
}

std::unique_ptr<Model> make_deepseek(const ModelSetup& setup) {
  return std::make_unique<DeepseekModel>(setup);
}

ModelBytes deepseek_bytes(const DeepseekConfig& c, ComputeDtype dtype, ExpertPath path, bool expert_parallel,
                          int rank, int ranks, int threads, const BatchLimits& limits) {
  const DeepseekShapes s(c, path, expert_parallel, rank, ranks);
  const int64_t element = static_cast<int64_t>(dtype_bytes(weight_dtype(dtype, c.dtype)));
  const auto packed = [&](int64_t n, int64_t k) {
    return static_cast<int64_t>(packed_bytes(n, k, weight_dtype(dtype, c.dtype)));
  };
  const int64_t qk_out = s.q_width, local_heads = s.heads.size();
  int64_t attention =
      packed(s.kv_width, s.hidden) + packed(s.hidden, s.heads_width) +
      packed(local_heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank) +
      local_heads * (packed(c.kv_lora_rank, c.qk_nope_head_dim) + packed(c.v_head_dim, c.kv_lora_rank));
  attention +=
      s.q_lora > 0 ? packed(s.q_lora, s.hidden) + packed(qk_out, s.q_lora) : packed(qk_out, s.hidden);
  const auto mlp_bytes = [&](Slice columns) {
    return columns.size() > 0 ? 2 * packed(columns.size(), s.hidden) + packed(s.hidden, columns.size()) : 0;
  };
  const int64_t moe = c.num_moe_layers();
  const int64_t dense = c.num_hidden_layers - moe;
  ModelBytes bytes;
  bytes.weights = c.num_hidden_layers * attention + dense * mlp_bytes(s.dense_columns) +
                  moe * (s.experts.size() * mlp_bytes(s.expert_columns) + mlp_bytes(s.shared_columns) +
                         packed(c.n_routed_experts, s.hidden)) +
                  packed(s.vocab_rows.size(), s.hidden) +
                  // The embedding is read where it lies; count it once per machine, as page cache.
                  (rank == 0 ? c.vocab_size * c.hidden_size * element : 0) +
                  limits.max_positions * c.qk_rope_head_dim * 4;
  bytes.kv_per_block = c.num_hidden_layers * limits.block_size * s.kv_width *
                       static_cast<int64_t>(dtype_bytes(kv_dtype(dtype)));
  bytes.activations = DeepseekBufferSizes(s, limits).bytes();
  bytes.scratch = scratch_bytes(c, s, threads);
  bytes.max_collective_elements = std::max(limits.max_rows * s.hidden, limits.max_logits_rows * s.vocab);
  // Every token of a step on one rank's experts, once; what a rank sends is never more.
  bytes.max_all_to_all_elements = s.all_to_all ? (limits.max_rows + ranks) * s.hidden : 0;
  return bytes;
}

}  // namespace duet
