// Grouped-query attention of the oracle.
#include "golden/oracle_math.h"

namespace duet {

using namespace oracle;

void Oracle::load_grouped(const WeightSource& source, const std::string& attn, Layer& w) const {
  const int64_t q = c_.heads * c_.v, kv = c_.kv_heads * c_.v;
  w.q = read_matrix(source, attn + "q_proj.weight", q, c_.hidden);
  w.k = read_matrix(source, attn + "k_proj.weight", kv, c_.hidden);
  w.v = read_matrix(source, attn + "v_proj.weight", kv, c_.hidden);
  w.o = read_matrix(source, attn + "o_proj.weight", c_.hidden, q);
  if (c_.qkv_bias) {
    w.q_bias = read_vector(source, attn + "q_proj.bias", q);
    w.k_bias = read_vector(source, attn + "k_proj.bias", kv);
    w.v_bias = read_vector(source, attn + "v_proj.bias", kv);
  }
  if (c_.o_bias) w.o_bias = read_vector(source, attn + "o_proj.bias", c_.hidden);
  if (!c_.qk_norm) return;
  w.q_head_norm = read_vector(source, attn + "q_norm.weight", c_.v);
  w.k_head_norm = read_vector(source, attn + "k_norm.weight", c_.v);
}

std::vector<Vector> Oracle::grouped_attention(const Layer& w, const std::vector<Vector>& h) const {
  const int64_t hd = c_.v, half = hd / 2;
  const auto project = [](const Matrix& m, const Vector& bias, const Vector& x) {
    Vector y = times(m, x);
    if (!bias.empty()) add(y, bias);
    return y;
  };
  // Head by head: its norm, then element j and j + half as a complex number times e^{i · position ·
  // frequency}.
  const auto place = [&](Vector& heads, const Vector& norm, size_t position) {
    for (size_t at = 0; at < heads.size(); at += index(hd)) {
      Vector head(heads.begin() + static_cast<int64_t>(at), heads.begin() + static_cast<int64_t>(at) + hd);
      if (!norm.empty()) head = normalised(head, norm);
      for (int64_t j = 0; j < half; ++j) {
        const double angle = static_cast<double>(position) * c_.frequencies[index(j)];
        const double a = head[index(j)], b = head[index(j + half)];
        heads[at + index(j)] = (a * std::cos(angle) - b * std::sin(angle)) * c_.rotation_scale;
        heads[at + index(j + half)] = (a * std::sin(angle) + b * std::cos(angle)) * c_.rotation_scale;
      }
    }
  };
  std::vector<Vector> keys, values, out;
  for (size_t t = 0; t < h.size(); ++t) {
    keys.push_back(project(w.k, w.k_bias, h[t]));
    values.push_back(project(w.v, w.v_bias, h[t]));
    place(keys[t], w.k_head_norm, t);
    Vector queries = project(w.q, w.q_bias, h[t]), heads(queries.size(), 0.0);
    place(queries, w.q_head_norm, t);
    for (int64_t head = 0; head < c_.heads; ++head) {
      const int64_t shared = head / (c_.heads / c_.kv_heads) * hd;  // where its keys and values begin
      Vector scores;
      for (size_t s = 0; s <= t; ++s)
        scores.push_back(dot(&queries[index(head * hd)], &keys[s][index(shared)], hd) * c_.softmax_scale);
      const Vector share = softmax(scores);
      for (size_t s = 0; s <= t; ++s) {
        for (int64_t i = 0; i < hd; ++i)
          heads[index(head * hd + i)] += share[s] * values[s][index(shared + i)];
      }
    }
    out.push_back(project(w.o, w.o_bias, heads));
  }
  return out;
}

}  // namespace duet
