// Which full blocks of the KV cache hold what, so that a prompt which begins like an earlier one
// starts behind the common part. Asked by the scheduler when a sequence is admitted, told after each
// step which blocks became full.
// A block's content is its tokens, the content before them (by number, so a chain stands for the whole
// prefix) and how many of them were computed as prompt: the two forms of attention round differently.
// Keys are compared whole; a hash only finds them, so nothing can be mistaken for something else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

namespace duet {

class PrefixCache {
 public:
  /// `prompt_only`: a prompt never takes a block that holds generated tokens, which keeps logits
  /// independent of what ran before.
  explicit PrefixCache(bool prompt_only) : prompt_only_(prompt_only) {}

  /// Number of the empty prefix; contents are numbered from 1 and no number is used again.
  static constexpr int64_t kRoot = 0;

  struct Hit {
    int32_t block = 0;
    int64_t content = 0;
  };

  /// `block` now holds `tokens` behind `parent`, the first `prompt_rows` of them computed as prompt.
  /// Returns the content's number; where another block holds the same, that one keeps the entry.
  int64_t publish(int32_t block, int64_t parent, std::span<const int32_t> tokens, int64_t prompt_rows);
  /// Exactly this content.
  std::optional<Hit> find(int64_t parent, std::span<const int32_t> tokens, int64_t prompt_rows) const;
  /// Tokens of a prompt: computed as prompt if there, else (unless prompt_only) as they were generated.
  std::optional<Hit> find_prompt(int64_t parent, std::span<const int32_t> tokens) const;

  bool holds(int32_t block) const { return held_.contains(block); }
  int64_t size() const { return static_cast<int64_t>(held_.size()); }
  /// The block is about to hold something else.
  void forget(int32_t block);
  /// Forgets all.
  void clear();

 private:
  struct Key {
    int64_t parent = 0;
    int64_t prompt_rows = 0;  // −1: whatever the form (index_generated_)
    std::vector<int32_t> tokens;
    bool operator==(const Key&) const = default;
  };
  struct KeyHash {
    size_t operator()(const Key& key) const;
  };
  using Index = std::unordered_map<Key, Hit, KeyHash>;

  static constexpr int64_t kAnyForm = -1;
  static Key key_of(int64_t parent, std::span<const int32_t> tokens, int64_t prompt_rows);
  static std::optional<Hit> look_up(const Index& index, const Key& key);

  bool prompt_only_;
  int64_t last_ = kRoot;
  Index index_;
  Index index_generated_;                  // contents with generated tokens, by any form
  std::unordered_map<int32_t, Key> held_;  // by block, for forget
};

}  // namespace duet
