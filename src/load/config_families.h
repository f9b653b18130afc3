// What config.json means in each family: called by parse_config alone, after it has read the fields that all
// have. A function sets the rest of the struct and refuses by name what its family cannot do here.
#pragma once

#include "load/config.h"
#include "load/json.h"

namespace duet {

void parse_deepseek(const JsonFields& fields, ModelConfig& c);
void parse_llama(const JsonFields& fields, ModelConfig& c);
void parse_mistral(const JsonFields& fields, ModelConfig& c);
void parse_mixtral(const JsonFields& fields, ModelConfig& c);
void parse_qwen2(const JsonFields& fields, ModelConfig& c);
void parse_qwen3(const JsonFields& fields, ModelConfig& c);  // and its mixture of experts

namespace config_limits {
// Far above any published model, low enough that a product of two sizes cannot overflow.
constexpr int64_t kMaxSize = int64_t{1} << 20;  // widths, head sizes, experts
constexpr int64_t kMaxVocab = int64_t{1} << 26;
constexpr int64_t kMaxLayers = int64_t{1} << 14;
constexpr int64_t kMaxPositions = int64_t{1} << 31;
constexpr uint64_t kMaxConfigBytes = uint64_t{64} << 20;
}  // namespace config_limits

}  // namespace duet
