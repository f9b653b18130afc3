// BPE, the `model` of tokenizer.json: over bytes (a byte-level vocabulary) or over characters, where one that
// the vocabulary lacks falls back to its bytes ("<0xE2>" …) or to the unknown token, as SentencePiece does.
// Words (from PreTokenizer) become token ids by merging, lowest rank first, leftmost first. A word is first
// cut between bytes that no merge can join; a part of n bytes costs O(n log n) whatever it holds: short ones
// scan, long ones go through a queue of ranks. Immutable after parsing; each thread of encoding brings its
// own Scratch, which also remembers the short words it has seen.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace duet {

struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
using VocabMap = std::unordered_map<std::string, int32_t, TextHash, std::equal_to<>>;

class Bpe {
 public:
  struct Scratch;
  struct ScratchDeleter {
    void operator()(Scratch* scratch) const;
  };
  using ScratchPtr = std::unique_ptr<Scratch, ScratchDeleter>;
  static ScratchPtr make_scratch();

  /// `json` is the model object. Throws Error(kUnsupported) or Error(kCorrupt) with the JSON path.
  static Bpe parse(const nlohmann::json& json, bool byte_level = true);

  /// Appends the ids of one word. What the vocabulary lacks is dropped, as Hugging Face does.
  void encode_word(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const;
  /// The ids of the bytes or characters alone, nothing merged.
  void encode_unmerged(std::string_view word, std::vector<int32_t>& ids) const;

  const VocabMap& vocab() const { return vocab_; }
  int32_t max_id() const { return max_id_; }

 private:
  struct Merge {
    uint64_t pair = ~0ull;  // left id << 32 | right id
    int32_t rank = -1;
  };
  struct Token {
    size_t begin;  // place in the part
    int32_t id;
  };
  static uint64_t hash_pair(uint64_t pair) { return (pair * 0x9E3779B97F4A7C15ull) >> 32; }
  void parse_vocab(const nlohmann::json& json);
  void parse_fallback(const nlohmann::json& json);
  void encode_character(std::string_view character, std::vector<int32_t>& ids) const;
  std::string spelling(std::string_view word) const;
  void parse_merges(const nlohmann::json& json);
  void build_table(const std::vector<Merge>& merges);
  int32_t find_rank(int32_t left, int32_t right) const;
  void start_with_characters(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const;
  void merge(Scratch& scratch, std::vector<int32_t>& ids) const;
  void merge_short(Scratch& scratch, std::vector<int32_t>& ids) const;
  void merge_long(Scratch& scratch, std::vector<int32_t>& ids) const;
  bool merge_windows(size_t window, Scratch& scratch, std::vector<int32_t>& ids) const;
  void merge_window(size_t begin, size_t end, Scratch& scratch, std::vector<Token>& tokens) const;

  VocabMap vocab_;
  int32_t max_id_ = -1;
  bool ignore_merges_ = false;
  bool byte_level_ = true;
  bool byte_fallback_ = false;  // with characters: byte_id_ holds the tokens of the bytes
  int32_t unknown_ = -1;        // with characters
  bool fuse_unknown_ = false;
  std::array<int32_t, 256> byte_id_{};
  std::vector<int16_t> byte_of_id_;  // id → its byte, −1 for longer tokens
  std::vector<int32_t> merged_;      // rank → the id it makes
  std::vector<int32_t> byte_ranks_;  // [left byte][right byte] → rank: most lookups end here
  std::vector<Merge> table_;         // the other pairs: open addressing, a power of two
  std::vector<uint64_t> filter_;     // a bit per hash of a pair of table_, eight times as many as slots
  std::array<std::bitset<256>, 256> joins_;  // [left byte][right byte]: some merge joins two such ends
};

/// Byte → the printable character that stands for it in a byte-level vocabulary, as UTF-8 (GPT-2's table).
const std::array<std::string, 256>& byte_level_alphabet();
/// Inverse: the bytes that a vocabulary string stands for; the string itself when a character is
/// outside the alphabet (as Hugging Face's ByteLevel decoder does).
std::string byte_level_decode(std::string_view token);

}  // namespace duet
