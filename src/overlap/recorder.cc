#include "overlap/recorder.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace duet {

void Stages::begin_micro_batch(int micro_batch) {
  DUET_CHECK(micro_batch == recording_.micro_batches);
  micro_batch_ = micro_batch;
  recording_.micro_batches = micro_batch + 1;
  layer_ = -1;
}

BufferId Stages::intern(const std::string& name) {
  const auto [it, added] = ids_.try_emplace(name, static_cast<BufferId>(recording_.buffers.size()));
  if (added) recording_.buffers.push_back(name);
  return it->second;
}

BufferId Stages::buffer(const std::string& name) {
  return intern(name + ".b" + std::to_string(micro_batch_));
}

BufferId Stages::kv() {
  const BufferId id = intern("kv.L" + std::to_string(layer_) + ".b" + std::to_string(micro_batch_));
  if (std::find(recording_.kept.begin(), recording_.kept.end(), id) == recording_.kept.end())
    recording_.kept.push_back(id);
  return id;
}

std::vector<BufferId> Stages::kv_so_far() {
  std::vector<BufferId> ids;
  for (int m = 0; m <= micro_batch_; ++m) {
    ids.push_back(intern("kv.L" + std::to_string(layer_) + ".b" + std::to_string(m)));
  }
  return ids;
}

void Stages::add(const char* kind, Lane lane, std::vector<BufferId> reads, std::vector<BufferId> writes,
                 StageBody body) {
  DUET_CHECK(recording_.micro_batches > 0);
  recording_.stages.push_back({kind, layer_, micro_batch_, lane, std::move(reads), std::move(writes)});
  recording_.bodies.push_back(std::move(body));
}

void Stages::compute(const char* kind, std::vector<BufferId> reads, std::vector<BufferId> writes,
                     StageBody body) {
  add(kind, Lane::kCompute, std::move(reads), std::move(writes), std::move(body));
}

void Stages::collective(const char* kind, std::vector<BufferId> reads, std::vector<BufferId> writes,
                        StageBody body) {
  add(kind, Lane::kComm, std::move(reads), std::move(writes), std::move(body));
}

}  // namespace duet
