#include "engine/cost_cache.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>

#include "base/cpu.h"
#include "base/hash.h"
#include "base/json_text.h"
#include "base/log.h"

namespace duet {

namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

// Kernels, drivers and machines change; four seconds a month are no price.
constexpr int64_t kMaxAgeSeconds = int64_t{30} * 24 * 3600;
constexpr int kFormat = 1;

int64_t seconds_now() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// Another build of Duet may have faster kernels.
std::string program_stamp() {
  std::error_code error;
  const auto time = fs::last_write_time("/proc/self/exe", error);
  const auto size = error ? 0 : fs::file_size("/proc/self/exe", error);
  return error ? "unknown" : fmt::format("{} bytes of {}", size, time.time_since_epoch().count());
}

Json model_key(const ModelConfig& c) {
  return {
      {"architecture", to_string(c.architecture)},
      {"layers", {c.num_hidden_layers, c.num_moe_layers()}},
      {"vocab_hidden", {c.vocab_size, c.hidden_size}},
      {"heads", {c.num_attention_heads, c.num_key_value_heads, c.head_dim}},
      {"latent", {c.q_lora_rank, c.kv_lora_rank, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim}},
      {"intermediate", {c.intermediate_size, c.moe_intermediate_size}},
      {"experts", {c.n_routed_experts, c.n_shared_experts, c.num_experts_per_tok, c.n_group, c.topk_group}},
      {"stored", c.quant.layout}};
}

}  // namespace

std::string cost_cache_directory(const std::string& setting) {
  if (setting == "off") return "";
  if (setting != "auto") return setting;
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value ? value : "");
  };
  // The XDG base directory specification: a relative path there is to be ignored.
  if (const std::string cache = variable("XDG_CACHE_HOME"); cache.starts_with('/')) return cache + "/duet";
  if (const std::string home = variable("HOME"); home.starts_with('/')) return home + "/.cache/duet";
  return "";
}

std::string describe_machine(CpuLevel level, int threads) {
  return fmt::format("{}\t{}, {}, {} cores, {} threads per rank", host_name(), cpu_model_name(),
                     to_string(level), available_cores().size(), threads);
}

std::string cost_key(const RankOptions& o, const ModelInfo& info, const std::vector<std::string>& machines) {
  std::set<std::string> hosts;
  for (const std::string& m : machines) hosts.insert(m.substr(0, m.find('\t')));
  Json places = Json::array();
  for (const std::string& m : machines) places.push_back(hosts.size() > 1 ? m : m.substr(m.find('\t') + 1));
  Json key = {{"program", program_stamp()},
              {"machines", std::move(places)},
              {"model", model_key(info.config)},
              {"dtype", to_string(kv_dtype(info.dtype))},
              {"quantization", o.quantization == Quantization::kW8A8 ? "w8a8" : "as stored"},
              {"int8_head", o.int8_head},
              {"kv_cache", to_string(kv_dtype(memory_policy(o, info.config)))},
              {"expert_path", to_string(o.expert_path)},
              {"expert_parallel", o.expert_parallel},
              {"wire", to_string(o.wire)},
              {"transport", info.transport},
              // A table measured with smaller steps knows less.
              {"largest_step", {o.max_batched_tokens, o.max_logits_rows, info.kv_blocks * info.block_size}}};
  if (o.link) key["link"] = {o.link->bytes_per_second, o.link->latency_ns};
  return json_text(key);
}

CostCache::CostCache(const std::string& directory, std::string key) : key_(std::move(key)) {
  if (directory.empty()) return;
  Fnv1a hash;
  hash.bytes(key_);
  file_ = fmt::format("{}/costs-{:016x}.json", directory, hash.value());
}

std::optional<std::string> CostCache::read() const {
  if (file_.empty()) return std::nullopt;
  std::ifstream in(file_, std::ios::binary);
  if (!in) return std::nullopt;
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  const Json j = try_json(text);
  const auto unusable = [&](const std::string& why) {
    log_info("step costs of {}: {}; measured anew", file_, why);
    return std::nullopt;
  };
  if (!j.is_object() || j.value("format", Json()) != kFormat || !j.contains("costs") ||
      !j.value("measured_at", Json()).is_number_integer())
    return unusable("not a file of costs");
  if (j.value("key", Json()) != read_json(key_)) return unusable("of another machine or model");
  const int64_t age = seconds_now() - j["measured_at"].get<int64_t>();
  if (age > kMaxAgeSeconds || age < -24 * 3600) return unusable(fmt::format("{} days old", age / 86400));
  log_info("step costs for --dbo from {}, measured {:.1f} hours ago", file_, static_cast<double>(age) / 3600);
  return json_text(j["costs"]);
}

void CostCache::write(const std::string& costs) const {
  if (file_.empty()) return;
  std::error_code error;
  fs::create_directories(fs::path(file_).parent_path(), error);
  // Under a name of its own first: several processes may start at once.
  const std::string temporary = fmt::format("{}.{}", file_, getpid());
  {
    std::ofstream out(temporary, std::ios::binary);
    out << json_text(Json{{"format", kFormat},
                          {"key", read_json(key_)},
                          {"measured_at", seconds_now()},
                          {"costs", read_json(costs)}},
                     1);
    out.close();
    if (!out) error = std::make_error_code(std::errc::io_error);
  }
  if (!error) fs::rename(temporary, file_, error);
  if (!error) return;
  log_info("step costs are not kept: cannot write {} (--dbo-cost-cache DIR or off)", file_);
  fs::remove(temporary, error);
}

}  // namespace duet
