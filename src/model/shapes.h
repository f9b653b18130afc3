// Sizes of one rank's share of a decoder, whatever its family: the one place where a dimension is
// divided by the number of ranks. Used by loading, buffers, stages and the memory plan.
#pragma once

#include "kernels/ops.h"
#include "load/config.h"
#include "load/shard.h"
#include "model/options.h"

namespace duet {

/// What the kind of attention decides about a rank's activations and cache, in elements.
struct AttentionWidths {
  int64_t q = 0;              // of a row of queries, this rank's heads
  int64_t heads = 0;          // of a row of their outputs
  int64_t kv = 0;             // of a token in the cache
  int64_t rope_dim = 0;       // of the rotated part of a head
  int64_t kv_int8_bytes = 0;  // of a token in an int8 cache; 0: this kind has none
};

struct DecoderShapes {
  DecoderShapes(const ModelConfig& config, ExpertPath path, bool expert_parallel, int rank, int ranks);

  int rank, ranks;
  bool all_to_all;  // dispatch and combine; residual rows have owners
  int64_t hidden, vocab, layers;
  Slice heads;                // this rank's
  AttentionWidths attention;  // set by the family
  Slice vocab_rows;           // of lm_head
  Slice dense_columns;        // of a dense layer's intermediate size
  Slice experts;              // routed experts that live here
  Slice expert_columns;       // and their columns: all of them with whole experts
  int64_t shared_size;        // of the shared experts together; 0: none
  Slice shared_columns;       // all of them where rows have owners
  int64_t top_k;
  GateParams gate;
};

}  // namespace duet
