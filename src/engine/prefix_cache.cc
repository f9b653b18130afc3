#include "engine/prefix_cache.h"

#include <utility>

namespace duet {

size_t PrefixCache::KeyHash::operator()(const Key& key) const {
  // Only a bucket's number: equality decides. Multiply-and-fold keeps long runs of equal tokens apart.
  uint64_t h =
      static_cast<uint64_t>(key.parent) * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(key.prompt_rows);
  for (const int32_t token : key.tokens) {
    h ^= static_cast<uint32_t>(token);
    h *= 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
  }
  return static_cast<size_t>(h);
}

PrefixCache::Key PrefixCache::key_of(int64_t parent, std::span<const int32_t> tokens, int64_t prompt_rows) {
  return {parent, prompt_rows, {tokens.begin(), tokens.end()}};
}

std::optional<PrefixCache::Hit> PrefixCache::look_up(const Index& index, const Key& key) {
  const auto found = index.find(key);
  if (found == index.end()) return std::nullopt;
  return found->second;
}

int64_t PrefixCache::publish(int32_t block, int64_t parent, std::span<const int32_t> tokens,
                             int64_t prompt_rows) {
  Key key = key_of(parent, tokens, prompt_rows);
  const auto [entry, added] = index_.try_emplace(key, Hit{block, last_ + 1});
  if (!added) return entry->second.content;
  ++last_;
  if (prompt_rows < static_cast<int64_t>(tokens.size()))
    index_generated_[key_of(parent, tokens, kAnyForm)] = entry->second;
  held_[block] = std::move(key);
  return last_;
}

std::optional<PrefixCache::Hit> PrefixCache::find(int64_t parent, std::span<const int32_t> tokens,
                                                  int64_t prompt_rows) const {
  return look_up(index_, key_of(parent, tokens, prompt_rows));
}

std::optional<PrefixCache::Hit> PrefixCache::find_prompt(int64_t parent,
                                                         std::span<const int32_t> tokens) const {
  Key key = key_of(parent, tokens, static_cast<int64_t>(tokens.size()));
  if (const auto hit = look_up(index_, key)) return hit;
  if (prompt_only_) return std::nullopt;
  key.prompt_rows = kAnyForm;
  return look_up(index_generated_, key);
}

void PrefixCache::forget(int32_t block) {
  const auto held = held_.find(block);
  if (held == held_.end()) return;
  Key& key = held->second;
  index_.erase(key);
  key.prompt_rows = kAnyForm;
  const auto generated = index_generated_.find(key);
  if (generated != index_generated_.end() && generated->second.block == block)
    index_generated_.erase(generated);
  held_.erase(held);
}

void PrefixCache::clear() {
  index_.clear();
  index_generated_.clear();
  held_.clear();
}

}  // namespace duet
