#include "model/deepseek/shapes.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace duet {

DeepseekShapes::DeepseekShapes(const DeepseekConfig& c, ExpertPath path, bool expert_parallel, int rank_in,
                               int ranks_in)
    : rank(rank_in),
      ranks(ranks_in),
      all_to_all(path == ExpertPath::kAllToAll),
      hidden(c.hidden_size),
      vocab(c.vocab_size),
      heads(shard(c.num_attention_heads, rank, ranks)),
      q_width(heads.size() * c.qk_head_dim()),
      heads_width(heads.size() * c.v_head_dim),
      kv_width(c.kv_lora_rank + c.qk_rope_head_dim),
      q_lora(c.q_lora_rank),
      vocab_rows(shard(c.vocab_size, rank, ranks)),
      dense_columns(shard(c.intermediate_size, rank, ranks)),
      top_k(c.n_routed_experts > 0 ? c.num_experts_per_tok : 0) {
  const bool whole = expert_parallel || all_to_all;
  const int64_t shared_size = c.n_shared_experts * c.moe_intermediate_size;
  experts = whole ? shard(c.n_routed_experts, rank, ranks) : Slice{0, c.n_routed_experts};
  expert_columns = whole ? Slice{0, c.moe_intermediate_size} : shard(c.moe_intermediate_size, rank, ranks);
  shared_columns = all_to_all ? Slice{0, shared_size} : shard(shared_size, rank, ranks);
  mla.heads = static_cast<int>(heads.size());
  mla.nope = static_cast<int>(c.qk_nope_head_dim);
  mla.rope = static_cast<int>(c.qk_rope_head_dim);
  mla.v = static_cast<int>(c.v_head_dim);
  mla.lora = static_cast<int>(c.kv_lora_rank);
  mla.scale = softmax_scale(c);
  gate.score = c.scoring_func == ScoringFunc::kSigmoid ? GateScore::kSigmoid : GateScore::kSoftmax;
  gate.method = c.topk_method == TopkMethod::kNoauxTc              ? GateMethod::kNoAuxTc
                : c.topk_method == TopkMethod::kGroupLimitedGreedy ? GateMethod::kGroupMax
                                                                   : GateMethod::kGreedy;
  gate.experts = static_cast<int>(c.n_routed_experts);
  gate.top_k = static_cast<int>(top_k);
  gate.groups = static_cast<int>(c.n_group);
  gate.top_groups = static_cast<int>(c.topk_group);
  gate.normalize = c.norm_topk_prob;
  gate.scaling = static_cast<float>(c.routed_scaling_factor);
}

namespace {

// YaRN's temperature: grows with the logarithm of the stretch (arXiv 2309.00071, §3.4).
double yarn_mscale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// Index of the frequency that turns `turns` times over the original context.
double yarn_correction_dim(double turns, double dim, double theta, double context) {
  return dim * std::log(context / (turns * 2.0 * std::numbers::pi)) / (2.0 * std::log(theta));
}

}  // namespace

RopeTable make_rope_table(const RopeConfig& rope, int64_t rope_dim, int64_t positions) {
  const int64_t half = rope_dim / 2;
  const double dim = static_cast<double>(rope_dim);
  std::vector<double> frequency(static_cast<size_t>(half));
  for (int64_t j = 0; j < half; ++j) {
    frequency[static_cast<size_t>(j)] = std::pow(rope.theta, -2.0 * static_cast<double>(j) / dim);
  }
  double scale = 1.0;
  if (rope.type == RopeType::kYarn) {
    const double context = static_cast<double>(rope.original_max_position_embeddings);
    double low = yarn_correction_dim(rope.beta_fast, dim, rope.theta, context);
    double high = yarn_correction_dim(rope.beta_slow, dim, rope.theta, context);
    if (rope.truncate) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, dim - 1.0);
    if (low == high) high += 0.001;
    for (int64_t j = 0; j < half; ++j) {
      // Fast frequencies stay, slow ones are stretched, those between are blended.
      const double ramp = std::clamp((static_cast<double>(j) - low) / (high - low), 0.0, 1.0);
      double& f = frequency[static_cast<size_t>(j)];
      f = f / rope.factor * ramp + f * (1.0 - ramp);
    }
    if (rope.attention_factor) {
      scale = *rope.attention_factor;
    } else if (rope.mscale != 0.0 && rope.mscale_all_dim != 0.0) {
      scale = yarn_mscale(rope.factor, rope.mscale) / yarn_mscale(rope.factor, rope.mscale_all_dim);
    } else {
      scale = yarn_mscale(rope.factor, 1.0);
    }
  }
  RopeTable table;
  table.positions = positions;
  table.half = static_cast<int>(half);
  table.cos.resize(static_cast<size_t>(positions * half));
  table.sin.resize(static_cast<size_t>(positions * half));
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t j = 0; j < half; ++j) {
      const double angle = static_cast<double>(p) * frequency[static_cast<size_t>(j)];
      table.cos[static_cast<size_t>(p * half + j)] = static_cast<float>(std::cos(angle) * scale);
      table.sin[static_cast<size_t>(p * half + j)] = static_cast<float>(std::sin(angle) * scale);
    }
  }
  return table;
}

float softmax_scale(const DeepseekConfig& c) {
  double scale = 1.0 / std::sqrt(static_cast<double>(c.qk_head_dim()));
  if (c.rope.type == RopeType::kYarn && c.rope.mscale_all_dim != 0.0) {
    const double m = yarn_mscale(c.rope.factor, c.rope.mscale_all_dim);
    scale *= m * m;
  }
  return static_cast<float>(scale);
}

}  // namespace duet
