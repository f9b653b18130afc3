// The forward pass of every family, read from top to bottom; what leads into attention is the family's own
// (its stages.cc). record() states it once per micro-batch: what each stage is called, reads, writes and
// does. A body works on a RowSet r: all rows of its micro-batch, or in the last layer those whose logits are
// wanted.
#include <algorithm>
#include <cstring>
#include <limits>

#include "comm/communicator.h"
#include "model/decoder.h"

namespace duet {

void Decoder::record(Stages& s) {
  record_embedding(s);
  const size_t layers = weights_.feed_forward.size();
  for (size_t l = 0; l < layers; ++l) {
    s.begin_layer(static_cast<int>(l));
    RowSet& rows = record_attention(s, attention(l), l + 1 == layers);
    record_feed_forward(s, weights_.feed_forward[l], rows);
  }
  s.begin_layer(-1);
  record_head(s);
}

// ---- embedding ----------------------------------------------------------------------------------

void Decoder::record_embedding(Stages& s) {
  Part& p = part_of(s);
  s.compute("embed", {}, {s.buffer("x")}, [this, &p] {
    if (shapes_.all_to_all) {
      embed(p, own(p.all, p.all.v.x), p.all.owned[static_cast<size_t>(shapes_.rank)]);
    } else {
      embed(p, p.all.v.x, 0);
    }
  });
}

void Decoder::embed(const Part& p, Rows x, int64_t first) {
  for (int64_t i = 0; i < x.rows; ++i) weights_.embedding->lookup(p.token_ids[first + i], x.row(i));
}

// ---- the frame around attention -----------------------------------------------------------------

Decoder::RowSet& Decoder::record_attention(Stages& s, const AttentionParts& a, bool last) {
  Part& p = part_of(s);
  const BufferId x = s.buffer("x"), h = s.buffer("h"), q = s.buffer("q"), heads = s.buffer("heads"),
                 part = s.buffer("part");

  if (shapes_.all_to_all) {  // the residual stays with its owner in float32; normed rows travel
    s.compute("attn_norm", {x}, {h}, [this, &p, norm = a.norm] {
      rms_norm(cx(), own(p.all, p.all.v.x), norm, eps(), own(p.all, p.all.v.h));
    });
    s.collective("all_gather", {h}, {h},
                 [this, &p] { setup_.comm->all_gather_rows(own(p.all, p.all.v.h), p.all.owned, p.all.v.h); });
  }
  // The last layer moves the wanted rows of q and x to the front.
  const std::vector<BufferId> made =
      last ? std::vector<BufferId>{h, q, x, s.kv()} : std::vector<BufferId>{h, q, s.kv()};
  s.compute("attn_in", {x, h}, made, [this, &p, a, last] {
    attention_inputs(p, a);
    if (last) keep_wanted(p);
  });

  RowSet& r = last ? p.wanted : p.all;
  std::vector<BufferId> attended = s.kv_so_far();
  attended.push_back(q);
  s.compute("attn_core", attended, {heads}, [&r, core = a.core] { core(r.v.q, r.spans, r.v.heads); });
  s.compute("attn_out", {heads}, {part}, [this, &r, out = a.out, bias = a.out_bias] {
    gemm(cx(), r.v.heads, out->view(), r.v.part);
    if (!bias.empty() && shapes_.rank == 0) add_bias(cx(), bias, r.v.part);
  });
  if (shapes_.all_to_all) {
    s.collective("reduce_scatter", {part, x}, {x},
                 [this, &r] { setup_.comm->reduce_scatter_rows(r.v.part, r.owned, own(r, r.v.x), true); });
  } else {
    s.collective("attn_reduce", {part, x}, {x}, [this, &r] { setup_.comm->all_reduce_add(r.v.part, r.v.x); });
  }
  return r;
}

// x [rows, hidden] → q [rows, attention.q] rotated; keys and values → the cache. Some rows at a time.
void Decoder::attention_inputs(const Part& p, const AttentionParts& a) {
  for (int64_t first = 0; first < p.all.count; first += kProjectionRows) {
    const int64_t n = std::min(kProjectionRows, p.all.count - first);
    const auto count = static_cast<size_t>(n);
    const ArenaScope scope(scratch_);
    const Rows h = p.all.v.h.row_slice(first, n);
    if (!shapes_.all_to_all) rms_norm(cx(), p.all.v.x.row_slice(first, n), a.norm, eps(), h);
    a.inputs({h,
              p.all.v.q.row_slice(first, n),
              {p.batch.positions.data() + first, count},
              {p.batch.slots.data() + first, count}});
  }
}

// Wanted rows only move towards the front, so one pass in ascending order overwrites nothing it needs.
void Decoder::keep_wanted(Part& p) {
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

// ---- feed-forward -------------------------------------------------------------------------------

void Decoder::record_feed_forward(Stages& s, const FeedForwardWeights& w, RowSet& rows) {
  if (!w.moe) {
    record_dense(s, w, rows);
  } else if (shapes_.all_to_all) {
    record_moe_all_to_all(s, w, rows);
  } else {
    record_moe_all_reduce(s, w, rows);
  }
}

void Decoder::record_dense(Stages& s, const FeedForwardWeights& w, RowSet& r) {
  const BufferId x = s.buffer("x"), h = s.buffer("h"), part = s.buffer("part");
  if (shapes_.all_to_all) {
    s.compute("mlp_norm", {x}, {h},
              [this, &r, &w] { rms_norm(cx(), own(r, r.v.x), w.norm, eps(), own(r, r.v.h)); });
    s.collective("all_gather", {h}, {h},
                 [this, &r] { setup_.comm->all_gather_rows(own(r, r.v.h), r.owned, r.v.h); });
    s.compute("mlp", {h}, {part}, [this, &r, &w] { mlp(cx(), r.v.h, w.dense, r.v.part); });
    s.collective("reduce_scatter", {part, x}, {x},
                 [this, &r] { setup_.comm->reduce_scatter_rows(r.v.part, r.owned, own(r, r.v.x), true); });
  } else {
    s.compute("mlp", {x}, {h, part}, [this, &r, &w] {
      rms_norm(cx(), r.v.x, w.norm, eps(), r.v.h);
      mlp(cx(), r.v.h, w.dense, r.v.part);
    });
    s.collective("mlp_reduce", {part, x}, {x}, [this, &r] { setup_.comm->all_reduce_add(r.v.part, r.v.x); });
  }
}

// ---- mixture of experts, all-reduce path --------------------------------------------------------
// Every rank has every token and computes its experts (or its slice of every expert).

void Decoder::record_moe_all_reduce(Stages& s, const FeedForwardWeights& w, RowSet& r) {
  Part& p = part_of(s);
  const BufferId x = s.buffer("x"), h = s.buffer("h"), part = s.buffer("part"), choice = s.buffer("choice");

  s.compute("route", {x}, {h, choice}, [this, &r, &w] {
    rms_norm(cx(), r.v.x, w.norm, eps(), r.v.h);
    choose_experts(r, w.routed, r.v.h);
  });
  s.compute("shared", {h}, {part}, [this, &r, &w] {
    if (w.routed.has_shared) {
      mlp(cx(), r.v.h, w.routed.shared, r.v.part);
    } else {
      std::memset(r.v.part.data, 0, static_cast<size_t>(r.v.part.rows * r.v.part.cols) * sizeof(float));
    }
  });
  const auto layer = static_cast<size_t>(s.layer());
  s.compute("experts", {h, choice, part}, {part},
            [this, &p, &r, &w, layer] { local_experts(p, r, w.routed, layer, r.v.h, r.count, r.v.part); });
  s.collective("mlp_reduce", {part, x}, {x}, [this, &r] { setup_.comm->all_reduce_add(r.v.part, r.v.x); });
}

// h [rows, hidden] → expert ids and weights [rows, top_k]. The gate sees unrounded activations in
// every --dtype, as Hugging Face's does.
void Decoder::choose_experts(const RowSet& r, const MoeWeights& w, ConstRows h) {
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
void Decoder::local_experts(Part& p, const RowSet& r, const MoeWeights& w, size_t layer, ConstRows x,
                            int64_t rows, Rows out) {
  p.groups = group_by_expert(r.v.expert_ids, r.v.expert_weights, rows, static_cast<int>(shapes_.top_k),
                             static_cast<int32_t>(shapes_.experts.begin),
                             static_cast<int32_t>(shapes_.experts.size()), r.v.group_offsets, r.v.group_rows,
                             r.v.group_weights);
  p.expert_rows[layer] = p.groups.offsets.back();
  experts(cx(), x, w.experts, p.groups, out);
}

// ---- final norm and logits ----------------------------------------------------------------------

void Decoder::record_head(Stages& s) {
  RowSet& r = part_of(s).wanted;
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
  const Part& p = part_of(s);
  s.compute("head", {in}, {part}, [this, &p, &r] {
    gemm(cx(), r.v.head_in, weights_.head.view(), r.v.head_part);
    pick_best(p, r.v);
  });
  s.collective("best_gather", {part}, {logits}, [this, &p, &r] { gather_best(p, r.v); });
  s.collective("logits_gather", {part, logits}, {logits}, [this, &p, &r] { gather_logits(p, r.v); });
}

namespace {

void move_row(const Rows& rows, int64_t from, int64_t to) {
  if (from != to) std::memcpy(rows.row(to), rows.row(from), static_cast<size_t>(rows.cols) * sizeof(float));
}

}  // namespace

// head_part → best_part; the rows that travel whole move to the front of head_part.
void Decoder::pick_best(const Part& p, const DecoderRows& v) {
  if (p.batch.best_rows.empty()) return;
  for (size_t i = 0; i < p.batch.best_rows.size(); ++i) {
    const float* row = v.head_part.row(p.batch.best_rows[i]);
    const int64_t best = argmax(cx(), {row, static_cast<size_t>(v.head_part.cols)});
    float* pair = v.best_part.row(static_cast<int64_t>(i));
    pair[0] = best < 0 ? -std::numeric_limits<float>::infinity() : row[best];
    pair[1] = best < 0 ? float{BestToken::kNoNumber} : static_cast<float>(shapes_.vocab_rows.begin + best);
  }
  for (size_t i = 0; i < p.batch.whole_rows.size(); ++i)
    move_row(v.head_part, p.batch.whole_rows[i], static_cast<int64_t>(i));
}

void Decoder::gather_best(const Part& p, const DecoderRows& v) {
  if (!p.batch.best_rows.empty()) setup_.comm->gather_rows_f32(v.best_part, pair_widths_, v.best_all, 0);
  if (shapes_.rank != 0) return;
  std::fill_n(v.best, v.logits.rows, BestToken{});
  for (size_t i = 0; i < p.batch.best_rows.size(); ++i) {
    const float* pairs = v.best_all.row(static_cast<int64_t>(i));
    BestToken best{BestToken::kNoNumber, -std::numeric_limits<float>::infinity()};
    // Ranks ascend in ids: the first of equals has the lowest.
    for (int r = 0; r < shapes_.ranks; ++r, pairs += 2)
      if (best.id < 0 || pairs[0] > best.logit) best = {static_cast<int32_t>(pairs[1]), pairs[0]};
    v.best[p.batch.best_rows[i]] = best;
  }
}

void Decoder::gather_logits(const Part& p, const DecoderRows& v) {
  const auto count = std::ssize(p.batch.whole_rows);
  if (count == 0) return;
  setup_.comm->gather_rows_f32(v.head_part.row_slice(0, count), head_widths_,
                               shapes_.rank == 0 ? v.logits.row_slice(0, count) : Rows{}, 0);
  if (shapes_.rank != 0) return;
  for (int64_t i = count - 1; i >= 0; --i) move_row(v.logits, i, p.batch.whole_rows[static_cast<size_t>(i)]);
}

}  // namespace duet
