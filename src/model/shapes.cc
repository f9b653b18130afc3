#include "model/shapes.h"

namespace duet {

DecoderShapes::DecoderShapes(const ModelConfig& c, ExpertPath path, bool expert_parallel, int rank_in,
                             int ranks_in)
    : rank(rank_in),
      ranks(ranks_in),
      all_to_all(path == ExpertPath::kAllToAll),
      hidden(c.hidden_size),
      vocab(c.vocab_size),
      layers(c.num_hidden_layers),
      heads(shard(c.num_attention_heads, rank, ranks)),
      vocab_rows(shard(c.vocab_size, rank, ranks)),
      dense_columns(shard(c.intermediate_size, rank, ranks)),
      shared_size(c.n_shared_experts * c.moe_intermediate_size),
      top_k(c.n_routed_experts > 0 ? c.num_experts_per_tok : 0) {
  const bool whole = expert_parallel || all_to_all;
  experts = whole ? shard(c.n_routed_experts, rank, ranks) : Slice{0, c.n_routed_experts};
  expert_columns = whole ? Slice{0, c.moe_intermediate_size} : shard(c.moe_intermediate_size, rank, ranks);
  shared_columns = all_to_all ? Slice{0, shared_size} : shard(shared_size, rank, ranks);
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

}  // namespace duet
