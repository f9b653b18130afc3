// Mixture of experts on the all-to-all path: a rank routes the rows it owns and sends each to the ranks of
// its experts, once per rank.
#include <algorithm>
#include <cstring>

#include "comm/communicator.h"
#include "model/decoder.h"

namespace duet {

void Decoder::record_moe_all_to_all(Stages& s, const FeedForwardWeights& w, RowSet& r) {
  Part& p = part_of(s);
  const BufferId x = s.buffer("x"), h = s.buffer("h"), part = s.buffer("part"), choice = s.buffer("choice"),
                 send = s.buffer("send"), received = s.buffer("received"), result = s.buffer("result"),
                 back = s.buffer("back");

  s.compute("route", {x}, {h, choice, send}, [this, &p, &r, &w] {
    const Rows h_own = own(r, r.v.h);
    rms_norm(cx(), own(r, r.v.x), w.norm, eps(), h_own);
    choose_experts(r, w.routed, h_own);
    pack_dispatch(p, r, h_own);
  });
  s.collective("dispatch", {send}, {received}, [this, &p, &r] { dispatch(p, r); });
  s.compute("shared", {h}, {part}, [this, &r, &w] {
    if (w.routed.has_shared) mlp(cx(), own(r, r.v.h), w.routed.shared, own(r, r.v.part));
  });
  const auto layer = static_cast<size_t>(s.layer());
  s.compute("experts", {received}, {choice, result},
            [this, &p, &r, &w, layer] { received_experts(p, r, w.routed, layer); });
  s.collective("combine", {result}, {back}, [this, &p, &r] { combine(p, r); });
  s.compute("merge", {back, part, x, send}, {part, x},
            [this, &p, &r, &w] { merge(p, r, w.routed.has_shared); });
}

// Owned rows → `send`, grouped by destination rank, rows ascending, with each row's whole choice.
void Decoder::pack_dispatch(Part& p, const RowSet& r, ConstRows own_rows) {
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

void Decoder::dispatch(Part& p, const RowSet& r) {
  const auto record = static_cast<size_t>(choice_bytes(shapes_.top_k));
  setup_.comm->dispatch_rows(r.v.send, {r.v.send_choice, static_cast<size_t>(r.v.send.rows) * record},
                             p.send_counts, r.v.received,
                             {r.v.received_choice, static_cast<size_t>(r.v.received.rows) * record}, r.owned,
                             record, p.receive_counts);
}

// The rows that came: each rank's, in rank order, through the experts that live here.
void Decoder::received_experts(Part& p, const RowSet& r, const MoeWeights& w, size_t layer) {
  const int64_t top_k = shapes_.top_k;
  int64_t rows = 0;
  for (int32_t count : p.receive_counts) rows += count;
  for (int64_t i = 0; i < rows; ++i) {  // owned rows' choices are on their way; the space is free
    const std::byte* from = r.v.received_choice + i * choice_bytes(top_k);
    std::memcpy(r.v.expert_ids + i * top_k, from, static_cast<size_t>(top_k) * sizeof(int32_t));
    std::memcpy(r.v.expert_weights + i * top_k, from + top_k * 4, static_cast<size_t>(top_k) * sizeof(float));
  }
  const Rows out = r.v.result.row_slice(0, rows);
  std::memset(out.data, 0, static_cast<size_t>(rows * out.cols) * sizeof(float));
  local_experts(p, r, w, layer, r.v.received.row_slice(0, rows), rows, out);
}

void Decoder::combine(Part& p, const RowSet& r) {
  setup_.comm->all_to_all_rows(r.v.result, p.receive_counts, r.v.back, p.send_counts);
}

// x += (shared + what rank 0's experts made + rank 1's + …), owned rows.
void Decoder::merge(Part& p, const RowSet& r, bool has_shared) {
  const Rows x = own(r, r.v.x), sum = own(r, r.v.part);
  if (!has_shared) std::memset(sum.data, 0, static_cast<size_t>(sum.rows * sum.cols) * sizeof(float));
  for (size_t sent = 0; sent < p.sent_rows.size(); ++sent) {  // grouped by rank, ascending
    add_rows(cx(), r.v.back.row_slice(static_cast<int64_t>(sent), 1), sum.row_slice(p.sent_rows[sent], 1));
  }
  add_rows(cx(), sum, x);
}

}  // namespace duet
