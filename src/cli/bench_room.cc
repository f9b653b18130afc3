#include "cli/bench_room.h"

#include "engine/options.h"

namespace duet {

RankOptions options_with_room(LlmOptions options, const ModelConfig& config, int64_t rows, int64_t blocks) {
  options.max_num_batched_tokens = rows;
  options.max_num_seqs = rows;
  RankOptions ranks = rank_options(options, config.vocab_size);
  ranks.cost_cache.clear();  // a benchmark measures
  if (!options.kv_cache_memory.empty()) return ranks;
  ranks.kv_cache_bytes = 0;
  ranks.kv_cache_bytes = blocks * plan_memory(ranks, config).kv_bytes_per_token * ranks.block_size;
  return ranks;
}

}  // namespace duet
