// The forward pass of DeepSeek (V2: arXiv 2405.04434, V3: arXiv 2412.19437), read from top to bottom.
// record() states it once per micro-batch: what each stage is called, reads, writes and does. A body
// works on a RowSet r: all rows of its micro-batch, or in the last layer those whose logits are wanted.
#include <algorithm>
#include <cstring>

#include "comm/communicator.h"
#include "model/deepseek/model.h"

namespace duet {

void DeepseekModel::record(Stages& s) {
  Part& p = parts_[static_cast<size_t>(s.micro_batch())];
  record_embedding(s);
  for (size_t l = 0; l < weights_.layers.size(); ++l) {
    const DeepseekLayer& layer = weights_.layers[l];
    const bool last = l + 1 == weights_.layers.size();
    s.begin_layer(static_cast<int>(l));
    record_attention(s, layer, caches_[l], last);
    RowSet& rows = last ? p.wanted : p.all;
    if (!layer.moe) {
      record_dense(s, layer, rows);
    } else if (shapes_.all_to_all) {
      record_moe_all_to_all(s, layer, rows);
    } else {
      record_moe_all_reduce(s, layer, rows);
    }
  }
  s.begin_layer(-1);
  record_head(s);
}

// ---- embedding ----------------------------------------------------------------------------------

void DeepseekModel::record_embedding(Stages& s) {
  Part& p = parts_[static_cast<size_t>(s.micro_batch())];
  s.compute("embed", {}, {s.buffer("x")}, [this, &p] {
    if (shapes_.all_to_all) {
      embed(p, own(p.all, p.all.v.x), p.all.owned[static_cast<size_t>(shapes_.rank)]);
    } else {
      embed(p, p.all.v.x, 0);
    }
  });
}

void DeepseekModel::embed(const Part& p, Rows x, int64_t first) {
  for (int64_t i = 0; i < x.rows; ++i) weights_.embedding->lookup(p.token_ids[first + i], x.row(i));
}

// ---- multi-head latent attention ----------------------------------------------------------------

void DeepseekModel::record_attention(Stages& s, const DeepseekLayer& layer, const LatentCache& cache,
                                     bool last) {
  Part& p = parts_[static_cast<size_t>(s.micro_batch())];
  const AttentionWeights& w = layer.attention;
  const BufferId x = s.buffer("x"), h = s.buffer("h"), q = s.buffer("q"), heads = s.buffer("heads"),
                 part = s.buffer("part");

  if (shapes_.all_to_all) {  // the residual stays with its owner in float32; normed rows travel
    s.compute("attn_norm", {x}, {h}, [this, &p, &w] {
      rms_norm(cx(), own(p.all, p.all.v.x), w.norm, eps(), own(p.all, p.all.v.h));
    });
    s.collective("all_gather", {h}, {h},
                 [this, &p] { setup_.comm->all_gather_rows(own(p.all, p.all.v.h), p.all.owned, p.all.v.h); });
  }
  // The last layer moves the wanted rows of q and x to the front.
  const std::vector<BufferId> made =
      last ? std::vector<BufferId>{h, q, x, s.kv()} : std::vector<BufferId>{h, q, s.kv()};
  s.compute("attn_in", {x, h}, made, [this, &p, &w, cache, last] {
    attention_inputs(p, w, cache);
    if (last) keep_wanted(p);
  });

  RowSet& r = last ? p.wanted : p.all;
  std::vector<BufferId> attended = s.kv_so_far();
  attended.push_back(q);
  s.compute("attn_core", attended, {heads}, [this, &r, &w, cache] {
    mla_attention(cx(), shapes_.mla, w.mla, r.v.q, cache, r.spans, r.v.heads);
  });
  s.compute("attn_out", {heads}, {part}, [this, &r, &w] { gemm(cx(), r.v.heads, w.o.view(), r.v.part); });
  if (shapes_.all_to_all) {
    s.collective("reduce_scatter", {part, x}, {x},
                 [this, &r] { setup_.comm->reduce_scatter_rows(r.v.part, r.owned, own(r, r.v.x), true); });
  } else {
    s.collective("attn_reduce", {part, x}, {x}, [this, &r] { setup_.comm->all_reduce_add(r.v.part, r.v.x); });
  }
}

// x [rows, hidden] → q [rows, heads · (nope + rope)] rotated; latent and rotated k_rope → the cache.
void DeepseekModel::attention_inputs(const Part& p, const AttentionWeights& w, const LatentCache& cache) {
  const MlaShape& mla = shapes_.mla;
  for (int64_t first = 0; first < p.all.count; first += kProjectionRows) {
    const int64_t n = std::min(kProjectionRows, p.all.count - first);
    const ArenaScope scope(scratch_);
    const std::span<const int32_t> positions(p.batch.positions.data() + first, static_cast<size_t>(n));
    const Rows h = p.all.v.h.row_slice(first, n), q = p.all.v.q.row_slice(first, n);
    if (!shapes_.all_to_all) rms_norm(cx(), p.all.v.x.row_slice(first, n), w.norm, eps(), h);

    if (shapes_.q_lora > 0) {
      const Rows low(scratch_.take<float>(static_cast<size_t>(n * shapes_.q_lora)), n, shapes_.q_lora);
      gemm(cx(), h, w.q_a.view(), low);
      rms_norm(cx(), low, w.q_norm, eps(), low);
      gemm(cx(), low, w.q_b.view(), q);
    } else {
      gemm(cx(), h, w.q_b.view(), q);
    }
    rope_interleaved(cx(), q, mla.heads, mla.nope + mla.rope, mla.nope, positions, rope_);

    const Rows kv(scratch_.take<float>(static_cast<size_t>(n * shapes_.kv_width)), n, shapes_.kv_width);
    gemm(cx(), h, w.kv_a.view(), kv);
    const Rows latent = kv.col_slice(0, mla.lora), k_rope = kv.col_slice(mla.lora, mla.rope);
    rms_norm(cx(), latent, w.kv_norm, eps(), latent);
    rope_interleaved(cx(), k_rope, 1, mla.rope, 0, positions, rope_);
    write_latent(cx(), mla, latent, k_rope, {p.batch.slots.data() + first, static_cast<size_t>(n)}, cache);
  }
}

// Wanted rows only move towards the front, so one pass in ascending order overwrites nothing it needs.
void DeepseekModel::keep_wanted(Part& p) {
  const auto move_row = [](const Rows& view, int64_t from, int64_t to) {
    if (from != to) std::memcpy(view.row(to), view.row(from), static_cast<size_t>(view.cols) * sizeof(float));
  };
  const size_t rank = static_cast<size_t>(shapes_.rank);
  const int64_t first = shapes_.all_to_all ? p.wanted.owned[rank] : 0;
  const int64_t end = shapes_.all_to_all ? p.wanted.owned[rank + 1] : p.wanted.count;
  for (int64_t i = 0; i < p.wanted.count; ++i)
    move_row(p.all.v.q, p.batch.logits_rows[static_cast<size_t>(i)], i);
  for (int64_t i = first; i < end; ++i) move_row(p.all.v.x, p.batch.logits_rows[static_cast<size_t>(i)], i);
}

// ---- dense feed-forward -------------------------------------------------------------------------

void DeepseekModel::record_dense(Stages& s, const DeepseekLayer& layer, RowSet& r) {
  const BufferId x = s.buffer("x"), h = s.buffer("h"), part = s.buffer("part");
  if (shapes_.all_to_all) {
    s.compute("mlp_norm", {x}, {h},
              [this, &r, &layer] { rms_norm(cx(), own(r, r.v.x), layer.mlp_norm, eps(), own(r, r.v.h)); });
    s.collective("all_gather", {h}, {h},
                 [this, &r] { setup_.comm->all_gather_rows(own(r, r.v.h), r.owned, r.v.h); });
    s.compute("mlp", {h}, {part}, [this, &r, &layer] { mlp(cx(), r.v.h, layer.dense, r.v.part); });
    s.collective("reduce_scatter", {part, x}, {x},
                 [this, &r] { setup_.comm->reduce_scatter_rows(r.v.part, r.owned, own(r, r.v.x), true); });
  } else {
    s.compute("mlp", {x}, {h, part}, [this, &r, &layer] {
      rms_norm(cx(), r.v.x, layer.mlp_norm, eps(), r.v.h);
      mlp(cx(), r.v.h, layer.dense, r.v.part);
    });
    s.collective("mlp_reduce", {part, x}, {x}, [this, &r] { setup_.comm->all_reduce_add(r.v.part, r.v.x); });
  }
}

// ---- mixture of experts, all-reduce path --------------------------------------------------------
// Every rank has every token and computes its experts (or its slice of every expert).

void DeepseekModel::record_moe_all_reduce(Stages& s, const DeepseekLayer& layer, RowSet& r) {
  Part& p = parts_[static_cast<size_t>(s.micro_batch())];
  const MoeWeights& w = layer.routed;
  const BufferId x = s.buffer("x"), h = s.buffer("h"), part = s.buffer("part"), choice = s.buffer("choice");

  s.compute("route", {x}, {h, choice}, [this, &r, &layer, &w] {
    rms_norm(cx(), r.v.x, layer.mlp_norm, eps(), r.v.h);
    choose_experts(r, w, r.v.h);
  });
  s.compute("shared", {h}, {part}, [this, &r, &w] {
    if (w.has_shared) {
      mlp(cx(), r.v.h, w.shared, r.v.part);
    } else {
      std::memset(r.v.part.data, 0, static_cast<size_t>(r.v.part.rows * r.v.part.cols) * sizeof(float));
    }
  });
  s.compute("experts", {h, choice, part}, {part},
            [this, &p, &r, &w] { local_experts(p, r, w, r.v.h, r.count, r.v.part); });
  s.collective("mlp_reduce", {part, x}, {x}, [this, &r] { setup_.comm->all_reduce_add(r.v.part, r.v.x); });
}

// h [rows, hidden] → expert ids and weights [rows, top_k]. The gate sees unrounded activations in
// every --dtype, as Hugging Face's does.
void DeepseekModel::choose_experts(const RowSet& r, const MoeWeights& w, ConstRows h) {
  for (int64_t first = 0; first < h.rows; first += kProjectionRows) {
    const int64_t n = std::min(kProjectionRows, h.rows - first);
    const ArenaScope scope(scratch_);
    const Rows logits(scratch_.take<float>(static_cast<size_t>(n * shapes_.gate.experts)), n,
                      shapes_.gate.experts);
    gemm(cx().with(Rounding::kNone), h.row_slice(first, n), w.gate.view(), logits);
    gate_top_k(cx(), logits, shapes_.gate, w.bias, r.v.expert_ids + first * shapes_.top_k,
               r.v.expert_weights + first * shapes_.top_k);
  }
}

// out [rows, hidden] += the weighted outputs of the experts that live here, in expert order.
void DeepseekModel::local_experts(Part& p, const RowSet& r, const MoeWeights& w, ConstRows x, int64_t rows,
                                  Rows out) {
  p.groups = group_by_expert(r.v.expert_ids, r.v.expert_weights, rows, static_cast<int>(shapes_.top_k),
                             static_cast<int32_t>(shapes_.experts.begin),
                             static_cast<int32_t>(shapes_.experts.size()), r.v.group_offsets, r.v.group_rows,
                             r.v.group_weights);
  experts(cx(), x, w.experts, p.groups, out);
}

// ---- mixture of experts, all-to-all path --------------------------------------------------------
// A rank routes the rows it owns and sends each to the ranks of its experts, once per rank.

void DeepseekModel::record_moe_all_to_all(Stages& s, const DeepseekLayer& layer, RowSet& r) {
  Part& p = parts_[static_cast<size_t>(s.micro_batch())];
  const MoeWeights& w = layer.routed;
  const BufferId x = s.buffer("x"), h = s.buffer("h"), part = s.buffer("part"), choice = s.buffer("choice"),
                 send = s.buffer("send"), received = s.buffer("received"), result = s.buffer("result"),
                 back = s.buffer("back");

  s.compute("route", {x}, {h, choice, send}, [this, &p, &r, &layer, &w] {
    const Rows h_own = own(r, r.v.h);
    rms_norm(cx(), own(r, r.v.x), layer.mlp_norm, eps(), h_own);
    choose_experts(r, w, h_own);
    pack_dispatch(p, r, h_own);
  });
  s.collective("dispatch", {send}, {received}, [this, &p, &r] { dispatch(p, r); });
  s.compute("shared", {h}, {part}, [this, &r, &w] {
    if (w.has_shared) mlp(cx(), own(r, r.v.h), w.shared, own(r, r.v.part));
  });
  s.compute("experts", {received}, {choice, result}, [this, &p, &r, &w] {
    const int64_t top_k = shapes_.top_k;
    int64_t rows = 0;
    for (int32_t count : p.receive_counts) rows += count;
    for (int64_t i = 0; i < rows; ++i) {  // owned rows' choices are on their way; the space is free
      const std::byte* from = r.v.received_choice + i * choice_bytes(top_k);
      std::memcpy(r.v.expert_ids + i * top_k, from, static_cast<size_t>(top_k) * sizeof(int32_t));
      std::memcpy(r.v.expert_weights + i * top_k, from + top_k * 4,
                  static_cast<size_t>(top_k) * sizeof(float));
    }
    const Rows out = r.v.result.row_slice(0, rows);
    std::memset(out.data, 0, static_cast<size_t>(rows * out.cols) * sizeof(float));
    local_experts(p, r, w, r.v.received.row_slice(0, rows), rows, out);
  });
  s.collective("combine", {result}, {back}, [this, &p, &r] { combine(p, r); });
  s.compute("merge", {back, part, x, send}, {part, x}, [this, &p, &r, &w] { merge(p, r, w.has_shared); });
}

// Owned rows → `send`, grouped by destination rank, rows ascending, with each row's whole choice.
void DeepseekModel::pack_dispatch(Part& p, const RowSet& r, ConstRows own_rows) {
  const int64_t top_k = shapes_.top_k, experts_per_rank = shapes_.gate.experts / shapes_.ranks;
  p.sent_rows.clear();
  int64_t sent = 0;
  for (int rank = 0; rank < shapes_.ranks; ++rank) {
    int32_t count = 0;
    for (int64_t i = 0; i < own_rows.rows; ++i) {
      const int32_t* ids = r.v.expert_ids + i * top_k;
      const bool goes =
          std::any_of(ids, ids + top_k, [&](int32_t id) { return id / experts_per_rank == rank; });
      if (!goes) continue;
      std::memcpy(r.v.send.row(sent), own_rows.row(i), static_cast<size_t>(own_rows.cols) * sizeof(float));
      std::byte* choice = r.v.send_choice + sent * choice_bytes(top_k);
      std::memcpy(choice, ids, static_cast<size_t>(top_k) * sizeof(int32_t));
      std::memcpy(choice + top_k * 4, r.v.expert_weights + i * top_k,
                  static_cast<size_t>(top_k) * sizeof(float));
      p.sent_rows.push_back(static_cast<int32_t>(i));
      ++sent;
      ++count;
    }
    p.send_counts[static_cast<size_t>(rank)] = count;
  }
}

void DeepseekModel::dispatch(Part& p, const RowSet& r) {
  Communicator& comm = *setup_.comm;
  comm.exchange_counts(p.send_counts, p.receive_counts);
  int64_t sent = 0, received = 0;
  for (size_t rank = 0; rank < p.send_counts.size(); ++rank) {
    p.send_bytes[rank] = p.send_counts[rank] * choice_bytes(shapes_.top_k);
    p.receive_bytes[rank] = p.receive_counts[rank] * choice_bytes(shapes_.top_k);
    sent += p.send_bytes[rank];
    received += p.receive_bytes[rank];
  }
  comm.all_to_all_bytes({r.v.send_choice, static_cast<size_t>(sent)}, p.send_bytes,
                        {r.v.received_choice, static_cast<size_t>(received)}, p.receive_bytes);
  comm.all_to_all_rows(r.v.send, p.send_counts, r.v.received, p.receive_counts);
}

void DeepseekModel::combine(Part& p, const RowSet& r) {
  setup_.comm->all_to_all_rows(r.v.result, p.receive_counts, r.v.back, p.send_counts);
}

// x += (shared + what rank 0's experts made + rank 1's + …), owned rows.
void DeepseekModel::merge(Part& p, const RowSet& r, bool has_shared) {
  const Rows x = own(r, r.v.x), sum = own(r, r.v.part);
  if (!has_shared) std::memset(sum.data, 0, static_cast<size_t>(sum.rows * sum.cols) * sizeof(float));
  for (size_t sent = 0; sent < p.sent_rows.size(); ++sent) {  // grouped by rank, ascending
    add_rows(cx(), r.v.back.row_slice(static_cast<int64_t>(sent), 1), sum.row_slice(p.sent_rows[sent], 1));
  }
  add_rows(cx(), sum, x);
}

// ---- final norm and logits ----------------------------------------------------------------------

void DeepseekModel::record_head(Stages& s) {
  RowSet& r = parts_[static_cast<size_t>(s.micro_batch())].wanted;
  const BufferId x = s.buffer("x"), in = s.buffer("head_in"), part = s.buffer("head_part"),
                 logits = s.buffer("logits");
  if (shapes_.all_to_all) {
    s.compute("head_norm", {x}, {in},
              [this, &r] { rms_norm(cx(), own(r, r.v.x), weights_.final_norm, eps(), own(r, r.v.head_in)); });
    s.collective("head_gather", {in}, {in},
                 [this, &r] { setup_.comm->all_gather_rows(own(r, r.v.head_in), r.owned, r.v.head_in); });
  } else {
    s.compute("head_norm", {x}, {in},
              [this, &r] { rms_norm(cx(), r.v.x, weights_.final_norm, eps(), r.v.head_in); });
  }
  s.compute("head", {in}, {part},
            [this, &r] { gemm(cx(), r.v.head_in, weights_.head.view(), r.v.head_part); });
  s.collective("logits_gather", {part}, {logits},
               [this, &r] { setup_.comm->gather_rows_f32(r.v.head_part, head_widths_, r.v.logits, 0); });
}

}  // namespace duet
