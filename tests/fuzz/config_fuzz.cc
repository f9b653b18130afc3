// Any text as config.json and generation_config.json: parsed, or refused with an Error; never a
// crash. What is accepted must keep the promises of ModelConfig.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "load/config.h"
#include "load/shard.h"

namespace {

void check_config(const duet::ModelConfig& c) {
  DUET_CHECK(c.hidden_size > 0 && c.vocab_size > 0 && c.num_attention_heads > 0 &&
             c.qk_rope_head_dim % 2 == 0);
  if (c.n_routed_experts > 0) {
    DUET_CHECK(c.n_group > 0 && c.n_routed_experts % c.n_group == 0 && c.topk_group <= c.n_group);
    DUET_CHECK(c.num_experts_per_tok >= 1 && c.num_experts_per_tok <= c.n_routed_experts);
  }
  DUET_CHECK(c.num_moe_layers() <= c.num_hidden_layers);
  for (const bool expert_parallel : {false, true}) {
    DUET_CHECK(!duet::valid_rank_counts(c, expert_parallel).empty());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    check_config(duet::parse_config(text, "config.json"));
  } catch (const duet::Error&) {
  }
  try {
    duet::parse_generation_config(text, "generation_config.json");
  } catch (const duet::Error&) {
  }
  return 0;
}
