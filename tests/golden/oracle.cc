#include "golden/oracle.h"
#include "base/json_text.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numbers>
#include <numeric>

#include "golden/oracle_math.h"

namespace duet {

using namespace oracle;

// ---- config -------------------------------------------------------------------------------------

OracleConfig::OracleConfig(const std::string& text) {
  const Json json = read_json(text);
  const auto integer = [&](const char* key, int64_t absent) { return value_or(json, key, absent); };
  const bool v3 = json.at("architectures").at(0) == "DeepseekV3ForCausalLM";
  vocab = json.at("vocab_size"), hidden = json.at("hidden_size");
  layers = json.at("num_hidden_layers"), heads = json.at("num_attention_heads");
  grouped = !json.contains("kv_lora_rank");
  q_lora = integer("q_lora_rank", 0), kv_lora = integer("kv_lora_rank", 0);
  kv_heads = integer("num_key_value_heads", heads);
  nope = integer("qk_nope_head_dim", 0),
  rope = integer("qk_rope_head_dim", integer("head_dim", hidden / heads));
  v = integer("v_head_dim", rope);
  const std::string architecture = json.at("architectures").at(0);
  o_bias = value_or(json, "attention_bias", false), qkv_bias = o_bias || architecture == "Qwen2ForCausalLM";
  qk_norm = architecture.starts_with("Qwen3");
  mixtral = architecture == "MixtralForCausalLM";
  intermediate = json.at("intermediate_size"),
  moe_intermediate = integer("moe_intermediate_size", intermediate);
  experts = integer("n_routed_experts", integer("num_experts", integer("num_local_experts", 0))),
  shared_experts = integer("n_shared_experts", 0);
  top_k = integer("num_experts_per_tok", 0);
  groups = integer("n_group", 1), top_groups = integer("topk_group", 1);
  first_dense = integer("first_k_dense_replace", v3 ? 3 : 0), moe_every = integer("moe_layer_freq", 1);
  sparse_step = integer("decoder_sparse_step", 1);
  dense_layers = value_or(json, "mlp_only_layers", std::vector<int64_t>{});
  tied = value_or(json, "tie_word_embeddings", false);
  const std::string method = value_or<std::string>(json, "topk_method", v3 ? "noaux_tc" : "greedy");
  v3_gate = method == "noaux_tc", by_groups = method != "greedy";
  normalise = value_or(json, "norm_topk_prob", v3 || mixtral);
  // Of every norm. Hugging Face keeps 1e-6 in q_a_layernorm and kv_a_layernorm whatever the config says,
  // vLLM does as this; no published model sets another value.
  eps = value_or(json, "rms_norm_eps", mixtral ? 1e-5 : 1e-6);
  routed_scaling = value_or(json, "routed_scaling_factor", v3 ? 2.5 : 1.0);

  const Json none = Json::object();
  const Json& scaling = json.contains("rope_parameters") ? json["rope_parameters"]
                        : json.contains("rope_scaling") && json["rope_scaling"].is_object()
                            ? json["rope_scaling"]
                            : none;
  const double theta = value_or(scaling, "rope_theta", value_or(json, "rope_theta", 10000.0));
  for (int64_t j = 0; j < rope / 2; ++j) frequencies.push_back(1 / std::pow(theta, 2.0 * j / rope));
  softmax_scale = 1 / std::sqrt(nope + rope);
  rotation_scale = 1;
  const std::string type = value_or(scaling, "rope_type", value_or<std::string>(scaling, "type", "default"));
  if (type == "default") return;

  const double factor = scaling.at("factor");
  if (type == "linear") {  // positions are pressed together
    for (double& f : frequencies) f /= factor;
    return;
  }
  if (type == "llama3") {
    const double original = scaling.at("original_max_position_embeddings");
    const double slow = original / scaling.at("low_freq_factor").get<double>();
    const double fast = original / scaling.at("high_freq_factor").get<double>();
    for (double& f : frequencies) {  // wavelengths: above `slow` stretched, below `fast` kept
      const double length = 2 * std::numbers::pi / f;
      const double keep =
          std::clamp((original / length - original / slow) / (original / fast - original / slow), 0.0, 1.0);
      f = (1 - keep) * f / factor + keep * f;
    }
    return;
  }
  const double context =
      value_or(scaling, "original_max_position_embeddings", json.value("max_position_embeddings", 4096.0));
  const auto dimension_that_turns = [&](double times) {
    return rope * std::log(context / (times * 2 * std::numbers::pi)) / (2 * std::log(theta));
  };
  double low = dimension_that_turns(value_or(scaling, "beta_fast", 32.0));
  double high = dimension_that_turns(value_or(scaling, "beta_slow", 1.0));
  if (value_or(scaling, "truncate", true)) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0), high = std::min(high, rope - 1.0);
  if (low == high) high += 0.001;
  for (int64_t j = 0; j < rope / 2; ++j) {
    const double stretched = std::min(std::max((j - low) / (high - low), 0.0), 1.0);
    double& f = frequencies[index(j)];
    f = f * (1 - stretched) + f / factor * stretched;
  }
  const double mscale = value_or(scaling, "mscale", 0.0), all = value_or(scaling, "mscale_all_dim", 0.0);
  rotation_scale = mscale != 0 && all != 0 ? yarn_temperature(factor, mscale) / yarn_temperature(factor, all)
                                           : yarn_temperature(factor, 1);
  rotation_scale = value_or(scaling, "attention_factor", rotation_scale);
  if (all != 0) softmax_scale *= std::pow(yarn_temperature(factor, all), 2);
}

bool OracleConfig::has_experts(int64_t layer) const {
  if (experts == 0 || layer < first_dense) return false;
  // moe_layer_freq as in DeepSeek's own modeling code (Hugging Face's port knows only 1).
  const bool dense = std::count(dense_layers.begin(), dense_layers.end(), layer) > 0;
  return layer % moe_every == 0 && (layer + 1) % sparse_step == 0 && !dense;
}

// ---- weights ------------------------------------------------------------------------------------

Oracle::Oracle(const std::string& config_json, const WeightSource& source) : c_(config_json) {
  embedding_ = read_matrix(source, "model.embed_tokens.weight", c_.vocab, c_.hidden);
  for (int64_t l = 0; l < c_.layers; ++l) layers_.push_back(load_layer(source, l));
  final_norm_ = read_vector(source, "model.norm.weight", c_.hidden);
  head_ = c_.tied ? embedding_ : read_matrix(source, "lm_head.weight", c_.vocab, c_.hidden);
}

Oracle::Mlp Oracle::load_mlp(const WeightSource& source, const std::string& prefix,
                             int64_t intermediate) const {
  return {
      read_matrix(source, prefix + (c_.mixtral ? "w1.weight" : "gate_proj.weight"), intermediate, c_.hidden),
      read_matrix(source, prefix + (c_.mixtral ? "w3.weight" : "up_proj.weight"), intermediate, c_.hidden),
      read_matrix(source, prefix + (c_.mixtral ? "w2.weight" : "down_proj.weight"), c_.hidden, intermediate)};
}

void Oracle::load_latent(const WeightSource& source, const std::string& attn, Layer& w) const {
  const int64_t q_width = c_.heads * (c_.nope + c_.rope);
  if (c_.q_lora > 0) {
    w.q_a = read_matrix(source, attn + "q_a_proj.weight", c_.q_lora, c_.hidden);
    w.q_norm = read_vector(source, attn + "q_a_layernorm.weight", c_.q_lora);
    w.q_b = read_matrix(source, attn + "q_b_proj.weight", q_width, c_.q_lora);
  } else {
    w.q_b = read_matrix(source, attn + "q_proj.weight", q_width, c_.hidden);
  }
  w.kv_a = read_matrix(source, attn + "kv_a_proj_with_mqa.weight", c_.kv_lora + c_.rope, c_.hidden);
  w.kv_norm = read_vector(source, attn + "kv_a_layernorm.weight", c_.kv_lora);
  w.kv_b = read_matrix(source, attn + "kv_b_proj.weight", c_.heads * (c_.nope + c_.v), c_.kv_lora);
  w.o = read_matrix(source, attn + "o_proj.weight", c_.hidden, c_.heads * c_.v);
}

Oracle::Layer Oracle::load_layer(const WeightSource& source, int64_t l) const {
  Layer w;
  const std::string layer = "model.layers." + std::to_string(l) + ".";
  const std::string attn = layer + "self_attn.", mlp = layer + (c_.mixtral ? "block_sparse_moe." : "mlp.");
  w.attention_norm = read_vector(source, layer + "input_layernorm.weight", c_.hidden);
  if (c_.grouped)
    load_grouped(source, attn, w);
  else
    load_latent(source, attn, w);
  w.mlp_norm = read_vector(source, layer + "post_attention_layernorm.weight", c_.hidden);
  if (!c_.has_experts(l)) {
    w.mlp = load_mlp(source, mlp, c_.intermediate);
    return w;
  }
  w.router = read_matrix(source, mlp + "gate.weight", c_.experts, c_.hidden);
  if (c_.v3_gate) w.correction_bias = read_vector(source, mlp + "gate.e_score_correction_bias", c_.experts);
  for (int64_t e = 0; e < c_.experts; ++e)
    w.experts.push_back(load_mlp(source, mlp + "experts." + std::to_string(e) + ".", c_.moe_intermediate));
  if (c_.shared_experts > 0)
    w.shared = load_mlp(source, mlp + "shared_experts.", c_.shared_experts * c_.moe_intermediate);
  return w;
}

// ---- forward pass -------------------------------------------------------------------------------

std::vector<float> Oracle::logits(const std::vector<int32_t>& tokens) {
  std::vector<Vector> x, h;  // per token
  for (int32_t token : tokens) x.push_back(embedding_.at(index(token)));
  for (const Layer& w : layers_) {
    h.clear();
    for (const Vector& row : x) h.push_back(normalised(row, w.attention_norm));
    const std::vector<Vector> attended = c_.grouped ? grouped_attention(w, h) : attention(w, h);
    for (size_t t = 0; t < x.size(); ++t) {
      add(x[t], attended[t]);
      add(x[t], feed_forward(w, normalised(x[t], w.mlp_norm)));
    }
  }
  std::vector<float> result;
  for (const Vector& row : x) {
    for (double logit : times(head_, normalised(row, final_norm_)))
      result.push_back(static_cast<float>(logit));
  }
  return result;
}

Vector Oracle::normalised(const Vector& x, const Vector& weight) const {
  const double mean = dot(x.data(), x.data(), static_cast<int64_t>(x.size())) / static_cast<double>(x.size());
  Vector y(x);
  for (size_t i = 0; i < y.size(); ++i) y[i] *= weight[i] / std::sqrt(mean + c_.eps);
  return y;
}

// Pair (2j, 2j + 1) as a complex number times e^{i · position · frequency}.
void Oracle::rotate(double* pairs, int64_t position) const {
  for (size_t j = 0; j < c_.frequencies.size(); ++j) {
    const double angle = static_cast<double>(position) * c_.frequencies[j];
    const double a = pairs[2 * j], b = pairs[2 * j + 1];
    pairs[2 * j] = (a * std::cos(angle) - b * std::sin(angle)) * c_.rotation_scale;
    pairs[2 * j + 1] = (a * std::sin(angle) + b * std::cos(angle)) * c_.rotation_scale;
  }
}

namespace {

/// Each `group` values as integers of up to `most`, times their scale.
void keep_as_integers(Vector& x, size_t group, double most) {
  for (size_t first = 0; first < x.size(); first += group) {
    const size_t end = std::min(first + group, x.size());
    double largest = 0;
    for (size_t i = first; i < end; ++i) largest = std::max(largest, std::abs(x[i]));
    const double scale = largest / most;
    for (size_t i = first; i < end && scale > 0; ++i) x[i] = std::nearbyint(x[i] / scale) * scale;
  }
}

}  // namespace

std::vector<Vector> Oracle::attention(const Layer& w, const std::vector<Vector>& h) const {
  const int64_t qk = c_.nope + c_.rope, kv = c_.nope + c_.v;
  std::vector<Vector> q, keys_values, k_rope, out;  // per token
  for (size_t t = 0; t < h.size(); ++t) {
    q.push_back(times(w.q_b, c_.q_lora > 0 ? normalised(times(w.q_a, h[t]), w.q_norm) : h[t]));
    for (int64_t head = 0; head < c_.heads; ++head)
      rotate(&q[t][index(head * qk + c_.nope)], static_cast<int64_t>(t));
    Vector latent = times(w.kv_a, h[t]);
    k_rope.emplace_back(latent.begin() + c_.kv_lora, latent.end());  // one for all heads
    rotate(k_rope[t].data(), static_cast<int64_t>(t));
    latent.resize(index(c_.kv_lora));
    latent = normalised(latent, w.kv_norm);
    if (int8_cache_) {
      keep_as_integers(latent, 128, 127);
      keep_as_integers(k_rope[t], k_rope[t].size(), 4095);
    }
    keys_values.push_back(times(w.kv_b, latent));  // per head: nope keys, values
  }
  for (size_t t = 0; t < h.size(); ++t) {
    Vector heads(index(c_.heads * c_.v), 0.0);
    for (int64_t head = 0; head < c_.heads; ++head) {
      const double* query = &q[t][index(head * qk)];
      Vector scores;
      for (size_t s = 0; s <= t; ++s) {
        const double* key = &keys_values[s][index(head * kv)];
        scores.push_back((dot(query, key, c_.nope) + dot(query + c_.nope, k_rope[s].data(), c_.rope)) *
                         c_.softmax_scale);
      }
      const Vector share = softmax(scores);
      for (size_t s = 0; s <= t; ++s) {
        const double* values = &keys_values[s][index(head * kv + c_.nope)];
        for (int64_t i = 0; i < c_.v; ++i) heads[index(head * c_.v + i)] += share[s] * values[i];
      }
    }
    out.push_back(times(w.o, heads));
  }
  return out;
}

Vector Oracle::feed_forward(const Layer& w, const Vector& h) {
  const auto swiglu = [&](const Mlp& mlp) {
    Vector a = times(mlp.gate, h);
    const Vector b = times(mlp.up, h);
    for (size_t i = 0; i < a.size(); ++i) a[i] *= sigmoid(a[i]) * b[i];
    return times(mlp.down, a);
  };
  if (w.experts.empty()) return swiglu(w.mlp);
  Vector sum(index(c_.hidden), 0.0);
  if (c_.shared_experts > 0) add(sum, swiglu(w.shared));
  for (const Choice& c : choose_experts(w, h)) add(sum, swiglu(w.experts[index(c.expert)]), c.weight);
  return sum;
}

// V2: softmax scores, a group is as good as its best expert. V3: sigmoid scores, chosen by score + bias,
// a group is as good as its best two; the weight is the score without the bias.
std::vector<Oracle::Choice> Oracle::choose_experts(const Layer& w, const Vector& h) {
  Vector scores = times(w.router, h);
  if (c_.v3_gate)
    std::transform(scores.begin(), scores.end(), scores.begin(), sigmoid);
  else
    scores = softmax(scores);
  Vector choice = scores;
  if (c_.v3_gate) add(choice, w.correction_bias);
  if (c_.by_groups) {
    const int64_t size = c_.experts / c_.groups;
    Vector group_scores, kept(choice.size(), 0.0);  // an expert of another group counts as 0
    for (int64_t g = 0; g < c_.groups; ++g) {
      Vector group(choice.begin() + g * size, choice.begin() + (g + 1) * size);
      std::sort(group.rbegin(), group.rend());
      group_scores.push_back(c_.v3_gate ? group.at(0) + group.at(1) : group.at(0));
    }
    for (int64_t g : largest(group_scores, c_.top_groups))
      std::copy_n(choice.begin() + g * size, size, kept.begin() + g * size);
    choice = kept;
  }
  std::vector<Choice> chosen;
  double sum = 0;
  for (int64_t e : largest(choice, c_.top_k)) {
    chosen.push_back({e, c_.v3_gate ? scores[index(e)] : choice[index(e)]});
    sum += chosen.back().weight;
  }
  // Duet normalises and scales, whatever the gate and top_k, as vLLM does. For V3 with top_k > 1 everybody
  // agrees. For V2 with norm_topk_prob true (no published model) DeepSeek's code leaves out the scaling and
  // Hugging Face's the normalisation; with top_k 1 DeepSeek's code does not normalise, Hugging Face's does.
  for (Choice& c : chosen) c.weight *= c_.routed_scaling / (c_.normalise ? sum + 1e-20 : 1.0);
  return chosen;
}

std::vector<int64_t> Oracle::largest(const Vector& values, int64_t count) {
  std::vector<int64_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return values[index(a)] > values[index(b)]; });
  if (index(count) < order.size()) {
    const double chosen = values[index(order[index(count - 1)])], left = values[index(order[index(count)])];
    if (chosen == 0 && left == 0) {  // experts of masked groups are equal exactly: what is near 0 can flip
      for (double value : values)
        gate_margin_ = value == 0 ? gate_margin_ : std::min(gate_margin_, std::abs(value));
    } else {
      gate_margin_ = std::min(gate_margin_, chosen - left);
    }
  }
  order.resize(index(count));
  return order;
}

}  // namespace duet
