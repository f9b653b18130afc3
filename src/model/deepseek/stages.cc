// The forward pass of DeepSeek (V2: arXiv 2405.04434, V3: arXiv 2412.19437), read from top to bottom.
// record() states it once per micro-batch: what each stage is called, reads, writes and does.
// Shapes in comments: n rows of this micro-batch, o of them owned by this rank (all-to-all path).
#include <algorithm>
#include <cstring>

#include "comm/communicator.h"
#include "model/deepseek/model.h"

namespace duet {

void DeepseekModel::record(Stages& s) {
  record_embedding(s);
  for (size_t l = 0; l < weights_.layers.size(); ++l) {
    const DeepseekLayer& layer = weights_.layers[l];
    s.begin_layer(static_cast<int>(l));
    record_attention(s, layer, caches_[l]);
    if (!layer.moe)
      record_dense(s, layer);
    else if (shapes_.all_to_all)
      record_moe_all_to_all(s, layer);
    else
      record_moe_all_reduce(s, layer);
  }
  s.begin_layer(-1);
  record_head(s);
}

// ---- embedding ----------------------------------------------------------------------------------

void DeepseekModel::record_embedding(Stages& s) {
  Part& p = parts_[static_cast<size_t>(s.micro_batch())];
  const BufferId x = s.buffer("x");
  s.compute("embed", {}, {x}, [this, &p] {
    if (shapes_.all_to_all)
      embed(p, own(p, p.rows.x), p.batch.owned[static_cast<size_t>(shapes_.rank)]);
    else
      embed(p, p.rows.x, 0);
  });
}

void DeepseekModel::embed(const Part& p, Rows x, int64_t first) {
  for (int64_t i = 0; i < x.rows; ++i) weights_.embedding->lookup(p.token_ids[first + i], x.row(i));
}

// ---- multi-head latent attention ----------------------------------------------------------------

void DeepseekModel::record_attention(Stages& s, const DeepseekLayer& layer, const LatentCache& cache) {
  Part& p = parts_[static_cast<size_t>(s.micro_batch())];
  const AttentionWeights& w = layer.attention;
  const BufferId x = s.buffer("x"), h = s.buffer("h"), q = s.buffer("q"), heads = s.buffer("heads"),
                 part = s.buffer("part");

  if (shapes_.all_to_all) {  // the residual stays with its owner in float32; normed rows travel
    s.compute("attn_norm", {x}, {h}, [this, &p, &w] {
      rms_norm(cx(), own(p, p.rows.x), w.norm, static_cast<float>(setup_.config.rms_norm_eps),
               own(p, p.rows.h));
    });
    s.collective("all_gather", {h}, {h},
                 [this, &p] { setup_.comm->all_gather_rows(own(p, p.rows.h), p.batch.owned, p.rows.h); });
  }
  s.compute("attn_in", {x, h}, {h, q, s.kv()}, [this, &p, &w, cache] { attention_inputs(p, w, cache); });

  std::vector<BufferId> attended = s.kv_so_far();
  attended.push_back(q);
  s.compute("attn_core", attended, {heads}, [this, &p, &w, cache] {
    mla_attention(cx(), shapes_.mla, w.mla, p.rows.q, cache, p.batch.spans, p.rows.heads);
  });
  s.compute("attn_out", {heads}, {part},
            [this, &p, &w] { gemm(cx(), p.rows.heads, w.o.view(), p.rows.part); });
  if (shapes_.all_to_all) {
    s.collective("reduce_scatter", {part, x}, {x}, [this, &p] {
      setup_.comm->reduce_scatter_rows(p.rows.part, p.batch.owned, own(p, p.rows.x), true);
    });
  } else {
    s.collective("attn_reduce", {part, x}, {x},
                 [this, &p] { setup_.comm->all_reduce_add(p.rows.part, p.rows.x); });
  }
}

// x [n, hidden] → q [n, heads · (nope + rope)] rotated; latent and rotated k_rope → the cache.
void DeepseekModel::attention_inputs(const Part& p, const AttentionWeights& w, const LatentCache& cache) {
  const float eps = static_cast<float>(setup_.config.rms_norm_eps);
  const MlaShape& mla = shapes_.mla;
  const int64_t head_width = mla.nope + mla.rope;
  for (int64_t first = 0; first < p.batch.rows; first += kProjectionRows) {
    const int64_t n = std::min(kProjectionRows, p.batch.rows - first);
    const ArenaScope scope(scratch_);
    const std::span<const int32_t> positions(p.batch.positions.data() + first, static_cast<size_t>(n));
    const Rows h = p.rows.h.row_slice(first, n), q = p.rows.q.row_slice(first, n);
    if (!shapes_.all_to_all) rms_norm(cx(), p.rows.x.row_slice(first, n), w.norm, eps, h);

    if (shapes_.q_lora > 0) {
      const Rows low(scratch_.take<float>(static_cast<size_t>(n * shapes_.q_lora)), n, shapes_.q_lora);
      gemm(cx(), h, w.q_a.view(), low);
      rms_norm(cx(), low, w.q_norm, eps, low);
      gemm(cx(), low, w.q_b.view(), q);
    } else {
      gemm(cx(), h, w.q_b.view(), q);
    }
    rope_interleaved(cx(), q, mla.heads, head_width, mla.nope, positions, rope_);

    const Rows kv(scratch_.take<float>(static_cast<size_t>(n * shapes_.kv_width)), n, shapes_.kv_width);
    gemm(cx(), h, w.kv_a.view(), kv);
    const Rows latent = kv.col_slice(0, mla.lora), k_rope = kv.col_slice(mla.lora, mla.rope);
    rms_norm(cx(), latent, w.kv_norm, eps, latent);
    rope_interleaved(cx(), k_rope, 1, mla.rope, 0, positions, rope_);
    write_latent(cx(), mla, latent, k_rope, {p.batch.slots.data() + first, static_cast<size_t>(n)}, cache);
  }
}

// ---- dense feed-forward -------------------------------------------------------------------------

void DeepseekModel::record_dense(Stages& s, const DeepseekLayer& layer) {
  Part& p = parts_[static_cast<size_t>(s.micro_batch())];
  const BufferId x = s.buffer("x"), h = s.buffer("h"), part = s.buffer("part");
  const float eps = static_cast<float>(setup_.config.rms_norm_eps);
  if (shapes_.all_to_all) {
    s.compute("mlp_norm", {x}, {h}, [this, &p, &layer, eps] {
      rms_norm(cx(), own(p, p.rows.x), layer.mlp_norm, eps, own(p, p.rows.h));
    });
    s.collective("all_gather", {h}, {h},
                 [this, &p] { setup_.comm->all_gather_rows(own(p, p.rows.h), p.batch.owned, p.rows.h); });
    s.compute("mlp", {h}, {part}, [this, &p, &layer] { mlp(cx(), p.rows.h, layer.dense, p.rows.part); });
    s.collective("reduce_scatter", {part, x}, {x}, [this, &p] {
      setup_.comm->reduce_scatter_rows(p.rows.part, p.batch.owned, own(p, p.rows.x), true);
    });
  } else {
    s.compute("mlp", {x}, {h, part}, [this, &p, &layer, eps] {
      rms_norm(cx(), p.rows.x, layer.mlp_norm, eps, p.rows.h);
      mlp(cx(), p.rows.h, layer.dense, p.rows.part);
    });
    s.collective("mlp_reduce", {part, x}, {x},
                 [this, &p] { setup_.comm->all_reduce_add(p.rows.part, p.rows.x); });
  }
}

// ---- mixture of experts, all-reduce path --------------------------------------------------------
// Every rank has every token and computes its experts (or its slice of every expert).

void DeepseekModel::record_moe_all_reduce(Stages& s, const DeepseekLayer& layer) {
  Part& p = parts_[static_cast<size_t>(s.micro_batch())];
  const MoeWeights& w = layer.routed;
  const BufferId x = s.buffer("x"), h = s.buffer("h"), part = s.buffer("part"), choice = s.buffer("choice");

  s.compute("route", {x}, {h, choice}, [this, &p, &layer, &w] {
    rms_norm(cx(), p.rows.x, layer.mlp_norm, static_cast<float>(setup_.config.rms_norm_eps), p.rows.h);
    choose_experts(p, w, p.rows.h);
  });
  s.compute("shared", {h}, {part}, [this, &p, &w] {
    if (w.has_shared)
      mlp(cx(), p.rows.h, w.shared, p.rows.part);
    else
      std::memset(p.rows.part.data, 0,
                  static_cast<size_t>(p.rows.part.rows * p.rows.part.cols) * sizeof(float));
  });
  s.compute("experts", {h, choice, part}, {part},
            [this, &p, &w] { local_experts(p, w, p.rows.h, p.batch.rows, p.rows.part); });
  s.collective("mlp_reduce", {part, x}, {x},
               [this, &p] { setup_.comm->all_reduce_add(p.rows.part, p.rows.x); });
}

// h [rows, hidden] → expert ids and weights [rows, top_k]. The gate sees unrounded activations in
// every --dtype, as Hugging Face's does.
void DeepseekModel::choose_experts(Part& p, const MoeWeights& w, ConstRows h) {
  for (int64_t first = 0; first < h.rows; first += kProjectionRows) {
    const int64_t n = std::min(kProjectionRows, h.rows - first);
    const ArenaScope scope(scratch_);
    const Rows logits(scratch_.take<float>(static_cast<size_t>(n * shapes_.gate.experts)), n,
                      shapes_.gate.experts);
    gemm(cx().with(Rounding::kNone), h.row_slice(first, n), w.gate.view(), logits);
    gate_top_k(cx(), logits, shapes_.gate, w.bias, p.rows.expert_ids + first * shapes_.top_k,
               p.rows.expert_weights + first * shapes_.top_k);
  }
}

// out [rows, hidden] += the weighted outputs of the experts that live here, in expert order.
void DeepseekModel::local_experts(Part& p, const MoeWeights& w, ConstRows x, int64_t rows, Rows out) {
  p.groups = group_by_expert(p.rows.expert_ids, p.rows.expert_weights, rows, static_cast<int>(shapes_.top_k),
                             static_cast<int32_t>(shapes_.experts.begin),
                             static_cast<int32_t>(shapes_.experts.size()), p.rows.group_offsets,
                             p.rows.group_rows, p.rows.group_weights);
  experts(cx(), x, w.experts, p.groups, out);
}

// ---- mixture of experts, all-to-all path --------------------------------------------------------
// A rank routes the rows it owns and sends each to the ranks of its experts, once per rank.

void DeepseekModel::record_moe_all_to_all(Stages& s, const DeepseekLayer& layer) {
  Part& p = parts_[static_cast<size_t>(s.micro_batch())];
  const MoeWeights& w = layer.routed;
  const BufferId x = s.buffer("x"), h = s.buffer("h"), part = s.buffer("part"), choice = s.buffer("choice"),
                 send = s.buffer("send"), received = s.buffer("received"), result = s.buffer("result"),
                 back = s.buffer("back");

  s.compute("route", {x}, {h, choice, send}, [this, &p, &layer, &w] {
    const Rows h_own = own(p, p.rows.h);
    rms_norm(cx(), own(p, p.rows.x), layer.mlp_norm, static_cast<float>(setup_.config.rms_norm_eps), h_own);
    choose_experts(p, w, h_own);
    pack_dispatch(p, h_own);
  });
  s.collective("dispatch", {send}, {received}, [this, &p] { dispatch(p); });
  s.compute("shared", {h}, {part}, [this, &p, &w] {
    if (w.has_shared) mlp(cx(), own(p, p.rows.h), w.shared, own(p, p.rows.part));
  });
  s.compute("experts", {received}, {choice, result}, [this, &p, &w] {
    const int64_t top_k = shapes_.top_k;
    int64_t rows = 0;
    for (int32_t count : p.receive_counts) rows += count;
    for (int64_t i = 0; i < rows; ++i) {  // owned rows' choices are on their way; the space is free
      const std::byte* from = p.rows.received_choice + i * choice_bytes(top_k);
      std::memcpy(p.rows.expert_ids + i * top_k, from, static_cast<size_t>(top_k) * sizeof(int32_t));
      std::memcpy(p.rows.expert_weights + i * top_k, from + top_k * 4,
                  static_cast<size_t>(top_k) * sizeof(float));
    }
    const Rows out = p.rows.result.row_slice(0, rows);
    std::memset(out.data, 0, static_cast<size_t>(rows * out.cols) * sizeof(float));
    local_experts(p, w, p.rows.received.row_slice(0, rows), rows, out);
  });
  s.collective("combine", {result}, {back}, [this, &p] { combine(p); });
  s.compute("merge", {back, part, x, send}, {part, x}, [this, &p, &w] { merge(p, w.has_shared); });
}

// Owned rows → `send`, grouped by destination rank, rows ascending, with each row's whole choice.
void DeepseekModel::pack_dispatch(Part& p, ConstRows own_rows) {
  const int64_t top_k = shapes_.top_k, experts_per_rank = shapes_.gate.experts / shapes_.ranks;
  p.sent_rows.clear();
  int64_t sent = 0;
  for (int r = 0; r < shapes_.ranks; ++r) {
    int32_t count = 0;
    for (int64_t i = 0; i < own_rows.rows; ++i) {
      const int32_t* ids = p.rows.expert_ids + i * top_k;
      const bool goes = std::any_of(ids, ids + top_k, [&](int32_t id) { return id / experts_per_rank == r; });
      if (!goes) continue;
      std::memcpy(p.rows.send.row(sent), own_rows.row(i), static_cast<size_t>(own_rows.cols) * sizeof(float));
      std::byte* choice = p.rows.send_choice + sent * choice_bytes(top_k);
      std::memcpy(choice, ids, static_cast<size_t>(top_k) * sizeof(int32_t));
      std::memcpy(choice + top_k * 4, p.rows.expert_weights + i * top_k,
                  static_cast<size_t>(top_k) * sizeof(float));
      p.sent_rows.push_back(static_cast<int32_t>(i));
      ++sent;
      ++count;
    }
    p.send_counts[static_cast<size_t>(r)] = count;
  }
}

void DeepseekModel::dispatch(Part& p) {
  Communicator& comm = *setup_.comm;
  comm.exchange_counts(p.send_counts, p.receive_counts);
  std::vector<int64_t> send_bytes, receive_bytes;
  for (int32_t count : p.send_counts) send_bytes.push_back(count * choice_bytes(shapes_.top_k));
  for (int32_t count : p.receive_counts) receive_bytes.push_back(count * choice_bytes(shapes_.top_k));
  const auto total = [](const std::vector<int64_t>& list) {
    int64_t sum = 0;
    for (int64_t bytes : list) sum += bytes;
    return static_cast<size_t>(sum);
  };
  comm.all_to_all_bytes({p.rows.send_choice, total(send_bytes)}, send_bytes,
                        {p.rows.received_choice, total(receive_bytes)}, receive_bytes);
  comm.all_to_all_rows(p.rows.send, p.send_counts, p.rows.received, p.receive_counts);
}

void DeepseekModel::combine(Part& p) {
  setup_.comm->all_to_all_rows(p.rows.result, p.receive_counts, p.rows.back, p.send_counts);
}

// x += (shared + what rank 0's experts made + rank 1's + …), owned rows.
void DeepseekModel::merge(Part& p, bool has_shared) {
  const Rows x = own(p, p.rows.x), sum = own(p, p.rows.part);
  if (!has_shared) {
    for (int64_t i = 0; i < sum.rows; ++i)
      std::memset(sum.row(i), 0, static_cast<size_t>(sum.cols) * sizeof(float));
  }
  for (size_t sent = 0; sent < p.sent_rows.size(); ++sent) {  // grouped by rank, ascending
    add_rows(cx(), p.rows.back.row_slice(static_cast<int64_t>(sent), 1), sum.row_slice(p.sent_rows[sent], 1));
  }
  add_rows(cx(), sum, x);
}

// ---- final norm and logits ----------------------------------------------------------------------

void DeepseekModel::record_head(Stages& s) {
  Part& p = parts_[static_cast<size_t>(s.micro_batch())];
  const BufferId x = s.buffer("x"), in = s.buffer("head_in"), part = s.buffer("head_part"),
                 logits = s.buffer("logits");
  s.compute("head_norm", {x}, {in}, [this, &p] { head_inputs(p); });
  if (shapes_.all_to_all) {
    s.collective("head_gather", {in}, {in}, [this, &p] {
      setup_.comm->all_gather_rows(p.own_head(p.rows.head_in, shapes_.rank), p.head_owned, p.rows.head_in);
    });
  }
  s.compute("head", {in}, {part},
            [this, &p] { gemm(cx(), p.rows.head_in, weights_.head.view(), p.rows.head_part); });
  s.collective("logits_gather", {part}, {logits}, [this, &p] {
    setup_.comm->gather_rows_f32(p.rows.head_part, head_widths_, p.rows.logits, 0);
  });
}

// Only rows whose logits are wanted go on; all-to-all: those among the owned rows.
void DeepseekModel::head_inputs(const Part& p) {
  const float eps = static_cast<float>(setup_.config.rms_norm_eps);
  const size_t first =
      shapes_.all_to_all ? static_cast<size_t>(p.head_owned[static_cast<size_t>(shapes_.rank)]) : 0;
  const size_t end = shapes_.all_to_all
                         ? static_cast<size_t>(p.head_owned[static_cast<size_t>(shapes_.rank) + 1])
                         : p.batch.logits_rows.size();
  for (size_t i = first; i < end; ++i) {
    rms_norm(cx(), p.rows.x.row_slice(p.batch.logits_rows[i], 1), weights_.final_norm, eps,
             p.rows.head_in.row_slice(static_cast<int64_t>(i), 1));
  }
}

}  // namespace duet
