// Sizes of one rank's share of a DeepSeek model: the one place where a dimension is divided by
// the number of ranks. Used by loading, buffers, stages and the memory plan.
#pragma once

#include "load/config.h"
#include "load/shard.h"
#include "model/model.h"

namespace duet {

struct DeepseekShapes {
  DeepseekShapes(const DeepseekConfig& config, ExpertPath path, bool expert_parallel, int rank, int ranks);

  int rank, ranks;
  bool all_to_all;  // dispatch and combine; residual rows have owners
  int64_t hidden, vocab;
  Slice heads;           // this rank's
  int64_t q_width;       // local heads · (nope + rope)
  int64_t heads_width;   // local heads · v
  int64_t kv_width;      // lora + rope, a row of the cache
  int64_t q_lora;        // 0: none
  Slice vocab_rows;      // of lm_head
  Slice dense_columns;   // of a dense layer's intermediate size
  Slice experts;         // routed experts that live here
  Slice expert_columns;  // and their columns: all of them with whole experts
  Slice shared_columns;  // of the shared experts: all of them where rows have owners
  int64_t top_k;
  MlaShape mla;
  GateParams gate;
};

/// cos and sin for positions [0, positions): plain or YaRN (arXiv 2309.00071) as Hugging Face
/// computes them, in float64 before the last rounding.
RopeTable make_rope_table(const RopeConfig& rope, int64_t rope_dim, int64_t positions);
/// 1 / √(qk head dim), times mscale² when YaRN sets mscale_all_dim.
float softmax_scale(const DeepseekConfig& config);

}  // namespace duet
