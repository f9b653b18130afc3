#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <queue>

#include "text/utf8.h"

namespace duet {

namespace {

// Up to here a scan over all pairs per merge beats any queue (measured on English and on code).
constexpr size_t kShortPart = 40;
// Bytes of a long part that are merged at once: the working set stays in L1 and L2, and an eighth, the
// overlap, holds two of the longest tokens that published vocabularies have (128 spaces).
constexpr size_t kWindow = 2048;
constexpr size_t kAhead = 8;             // places fetched ahead of the one being merged
constexpr size_t kCacheSlots = 1 << 15;  // × 64 bytes = 2 MiB per concurrent encode
constexpr size_t kCachedBytes = 30;
constexpr size_t kCachedIds = 8;

struct CachedWord {
  uint8_t length = 0;  // 0: empty slot
  uint8_t count = 0;
  char bytes[kCachedBytes];
  int32_t ids[kCachedIds];
};
static_assert(sizeof(CachedWord) == 64);

uint64_t hash_word(std::string_view word) {
  uint64_t hash = word.size();
  const auto mix = [&](uint64_t value) {
    hash = (hash ^ value) * 0x9E3779B97F4A7C15ull;
    hash ^= hash >> 29;
  };
  size_t i = 0;
  uint64_t chunk;
  for (; i + 8 <= word.size(); i += 8) {
    std::memcpy(&chunk, word.data() + i, 8);
    mix(chunk);
  }
  chunk = 0;
  std::memcpy(&chunk, word.data() + i, word.size() - i);
  mix(chunk);
  return hash;
}

struct Symbol {
  int32_t id;
  int32_t rank;  // of the pair with the next symbol; −1: none, or merged away
  int32_t previous, next;
};

// The pairs of a long part that can merge, by rank and within a rank from left to right. Merging
// mostly makes pairs of higher ranks, so a rank's places are gathered (in chunks of a cache line),
// sorted once when its turn comes, and walked; the exceptions go through a heap.
class PairQueue {
 public:
  void start(size_t ranks) {
    if (lists_.size() != ranks) {
      lists_.assign(ranks, {});
      some_.assign(ranks / 64 + 1, 0);
      some_of_some_.assign(some_.size() / 64 + 1, 0);
    }
    current_ = -1;
  }

  void push(int32_t rank, int32_t place) {
    if (rank <= current_) {
      early_.push(static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(place));
      return;
    }
    List& list = lists_[rank];
    if (list.last < 0) {
      list.first = list.last = new_chunk();
      some_[rank >> 6] |= 1ull << (rank & 63);
      some_of_some_[rank >> 12] |= 1ull << (rank >> 6 & 63);
    } else if (chunks_[list.last].count == kChunk) {
      const int32_t fresh = new_chunk();
      chunks_[list.last].next = fresh;
      list.last = fresh;
    }
    Chunk& chunk = chunks_[list.last];
    chunk.places[chunk.count++] = place;
  }

  /// Takes all places of the lowest rank that push() gathered, in order; false when there are none.
  bool next_rank(int32_t& rank, std::vector<int32_t>& places) {
    // Lower ranks than the current one are never gathered.
    size_t top = static_cast<size_t>(current_ + 1) >> 12;
    while (top < some_of_some_.size() && some_of_some_[top] == 0) ++top;
    if (top == some_of_some_.size()) return false;
    const size_t word = top * 64 + std::countr_zero(some_of_some_[top]);
    rank = static_cast<int32_t>(word * 64 + std::countr_zero(some_[word]));
    some_[word] &= some_[word] - 1;
    if (some_[word] == 0) some_of_some_[top] &= some_of_some_[top] - 1;
    places.clear();
    List& list = lists_[rank];
    for (int32_t at = list.first; at >= 0; at = chunks_[at].next) {
      places.insert(places.end(), chunks_[at].places, chunks_[at].places + chunks_[at].count);
    }
    chunks_[list.last].next = free_;
    free_ = list.first;
    list = {};
    if (!std::is_sorted(places.begin(), places.end())) std::sort(places.begin(), places.end());
    current_ = rank;
    return true;
  }

  /// Takes the first of the pairs that came too late for their rank if it is before (rank, place).
  bool next_early(int32_t before_rank, int32_t before_place, int32_t& rank, int32_t& place) {
    const uint64_t before = static_cast<uint64_t>(before_rank) << 32 | static_cast<uint32_t>(before_place);
    if (early_.empty() || early_.top() >= before) return false;
    rank = static_cast<int32_t>(early_.top() >> 32);
    place = static_cast<int32_t>(early_.top() & 0xFFFFFFFF);
    early_.pop();
    return true;
  }

 private:
  static constexpr int32_t kChunk = 14;
  struct Chunk {
    int32_t next, count;
    int32_t places[kChunk];
  };
  static_assert(sizeof(Chunk) == 64);
  struct List {
    int32_t first = -1, last = -1;  // chunks
  };

  int32_t new_chunk() {
    int32_t at = free_;
    if (at >= 0) {
      free_ = chunks_[at].next;
    } else {
      at = static_cast<int32_t>(chunks_.size());
      chunks_.emplace_back();
    }
    chunks_[at].next = -1;
    chunks_[at].count = 0;
    return at;
  }

  std::vector<List> lists_;                    // by rank
  std::vector<uint64_t> some_, some_of_some_;  // bit per rank with places; bit per word of some_
  std::vector<Chunk> chunks_;
  int32_t free_ = -1;
  int32_t current_ = -1;
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> early_;
};

}  // namespace

struct Bpe::Scratch {
  std::vector<CachedWord> cache = std::vector<CachedWord>(kCacheSlots);
  std::vector<int32_t> part;  // ids of a word's bytes, up to where no merge reaches
  std::vector<int32_t> character;
  std::vector<Symbol> symbols;
  std::vector<int32_t> places;
  std::vector<Token> tokens, next_tokens;  // of two windows
  PairQueue queue;
};

void Bpe::ScratchDeleter::operator()(Scratch* scratch) const {
  delete scratch;
}
Bpe::ScratchPtr Bpe::make_scratch() {
  return ScratchPtr(new Scratch);
}

int32_t Bpe::find_rank(int32_t left, int32_t right) const {
  const int left_byte = byte_of_id_[left], right_byte = byte_of_id_[right];
  if (left_byte >= 0 && right_byte >= 0) return byte_ranks_[left_byte * 256 + right_byte];
  const uint64_t pair =
      static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  const uint64_t hash = hash_pair(pair);
  // Most pairs of neighbours do not merge: a bit that stays in L2 says so.
  if (!(filter_[hash >> 6 & (filter_.size() - 1)] >> (hash & 63) & 1)) return -1;
  const size_t mask = table_.size() - 1;
  for (size_t at = hash & mask; table_[at].pair != ~0ull; at = (at + 1) & mask) {
    if (table_[at].pair == pair) return table_[at].rank;
  }
  return -1;
}

void Bpe::encode_unmerged(std::string_view word, std::vector<int32_t>& ids) const {
  const size_t first = ids.size();
  for (size_t at = 0; at < word.size();) {
    const size_t length = byte_level_ ? 1 : static_cast<size_t>(utf8_length(word[at]));
    const size_t count = ids.size();
    encode_character(word.substr(at, length), ids);
    if (fuse_unknown_ && count > first && ids.size() > count && ids.back() == unknown_ &&
        ids[count - 1] == unknown_)
      ids.pop_back();
    at += length;
  }
}

/// One byte, or one character.
void Bpe::encode_character(std::string_view character, std::vector<int32_t>& ids) const {
  if (byte_level_) {
    const int32_t id = byte_id_[static_cast<uint8_t>(character.front())];
    if (id >= 0) ids.push_back(id);
    return;
  }
  const auto found = vocab_.find(character);
  if (found != vocab_.end()) {
    ids.push_back(found->second);
    return;
  }
  const bool falls_back = byte_fallback_ && std::all_of(character.begin(), character.end(), [&](char c) {
                            return byte_id_[static_cast<uint8_t>(c)] >= 0;
                          });
  if (falls_back) {
    for (const char c : character) ids.push_back(byte_id_[static_cast<uint8_t>(c)]);
  } else if (unknown_ >= 0) {
    ids.push_back(unknown_);
  }
}

std::string Bpe::spelling(std::string_view word) const {
  if (!byte_level_) return std::string(word);
  std::string token;
  for (char c : word) token += byte_level_alphabet()[static_cast<uint8_t>(c)];
  return token;
}

void Bpe::encode_word(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const {
  if (word.size() == 1) return encode_unmerged(word, ids);  // a vocabulary has one id for it
  CachedWord* slot = nullptr;
  if (word.size() <= kCachedBytes) {
    slot = &scratch.cache[hash_word(word) >> 40 & (kCacheSlots - 1)];
    if (slot->length == word.size() && std::memcmp(slot->bytes, word.data(), word.size()) == 0) {
      ids.insert(ids.end(), slot->ids, slot->ids + slot->count);
      return;
    }
  }
  const size_t first = ids.size();
  bool done = false;
  if (ignore_merges_) {
    const auto found = vocab_.find(spelling(word));
    if (found != vocab_.end()) {
      ids.push_back(found->second);
      done = true;
    }
  }
  if (!done) {
    scratch.part.clear();
    if (byte_level_) {
      uint8_t previous = 0;
      for (char c : word) {
        const auto byte = static_cast<uint8_t>(c);
        if (byte_id_[byte] < 0) continue;
        if (!joins_[previous][byte] && !scratch.part.empty()) merge(scratch, ids);
        scratch.part.push_back(byte_id_[byte]);
        previous = byte;
      }
    } else {
      start_with_characters(word, scratch, ids);
    }
    if (!scratch.part.empty()) merge(scratch, ids);
  }
  const size_t count = ids.size() - first;
  if (slot != nullptr && count <= kCachedIds && !word.empty()) {
    slot->length = static_cast<uint8_t>(word.size());
    slot->count = static_cast<uint8_t>(count);
    std::memcpy(slot->bytes, word.data(), word.size());
    std::copy(ids.begin() + static_cast<ptrdiff_t>(first), ids.end(), slot->ids);
  }
}

/// scratch.part = the characters of a word; where no merge reaches, what came before is merged already.
void Bpe::start_with_characters(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const {
  std::vector<int32_t>&part = scratch.part, &character = scratch.character;
  uint8_t previous = 0;
  for (size_t at = 0; at < word.size();) {
    const auto length = static_cast<size_t>(utf8_length(word[at]));
    const auto lead = static_cast<uint8_t>(word[at]);
    character.clear();
    encode_character(word.substr(at, length), character);
    at += length;
    if (character.empty()) continue;
    const bool unknown = character.back() == unknown_;
    if (unknown && fuse_unknown_ && !part.empty() && part.back() == unknown_) continue;
    if (!joins_[previous][lead] && !part.empty() && !unknown) merge(scratch, ids);
    part.insert(part.end(), character.begin(), character.end());
    previous = static_cast<uint8_t>(word[at - 1]);
  }
}

/// Merges scratch.part, appends what it becomes and leaves it empty.
void Bpe::merge(Scratch& scratch, std::vector<int32_t>& ids) const {
  if (scratch.part.size() <= kShortPart) {
    merge_short(scratch, ids);
  } else {
    merge_long(scratch, ids);
  }
  scratch.part.clear();
}

void Bpe::merge_short(Scratch& scratch, std::vector<int32_t>& ids) const {
  std::vector<int32_t>& part = scratch.part;
  size_t count = part.size();
  int32_t ranks[kShortPart];  // ranks[i]: of the pair (i, i + 1)
  for (size_t i = 0; i + 1 < count; ++i) ranks[i] = find_rank(part[i], part[i + 1]);
  while (true) {
    size_t best = count;
    for (size_t i = 0; i + 1 < count; ++i) {
      if (ranks[i] >= 0 && (best == count || ranks[i] < ranks[best])) best = i;
    }
    if (best == count) break;
    part[best] = merged_[ranks[best]];
    --count;
    for (size_t i = best + 1; i < count; ++i) {
      part[i] = part[i + 1];
      ranks[i - 1] = ranks[i];
    }
    if (best + 1 < count) ranks[best] = find_rank(part[best], part[best + 1]);
    if (best > 0) ranks[best - 1] = find_rank(part[best - 1], part[best]);
  }
  ids.insert(ids.end(), part.begin(), part.begin() + static_cast<ptrdiff_t>(count));
}

/// Merges windows of the part that overlap, each on its own, so that the work stays in the cache. Which
/// merges happen inside a token depends on its own bytes alone, and whether two neighbours stay apart on
/// the bytes of those two (events elsewhere do not change which of their pairs comes first). So a list of
/// tokens whose every two neighbours are neighbours in some window's result is the result for the whole:
/// a window may end the list before its token T if the next window, which starts there, begins with T too.
void Bpe::merge_long(Scratch& scratch, std::vector<int32_t>& ids) const {
  const size_t first = ids.size();
  for (size_t window = kWindow; !merge_windows(window, scratch, ids); window *= 8) ids.resize(first);
}

/// False when no place was found where two windows agree: then larger ones, in the end a single one.
bool Bpe::merge_windows(size_t window, Scratch& scratch, std::vector<int32_t>& ids) const {
  const size_t total = scratch.part.size();
  std::vector<Token>&tokens = scratch.tokens, &next = scratch.next_tokens;
  size_t begin = 0, end = std::min(window, total);
  merge_window(begin, end, scratch, tokens);
  while (end < total) {
    bool agree = false;
    for (size_t eighths : {7, 4, 1}) {  // the token there has that much less of the unknown behind it
      const auto at = std::partition_point(tokens.begin(), tokens.end(), [&](const Token& token) {
        return token.begin < begin + window * eighths / 8;
      });
      if (at == tokens.end()) continue;
      const size_t next_end = std::min(at->begin + window, total);
      const int32_t* part = scratch.part.data();
      if (std::equal(part + begin, part + end, part + at->begin, part + next_end)) {
        // A run or a period: what was just found holds again.
        next = tokens;
        for (Token& token : next) token.begin += at->begin - begin;
      } else {
        merge_window(at->begin, next_end, scratch, next);
      }
      agree = next.front().id == at->id;
      if (!agree) continue;
      for (auto token = tokens.begin(); token != at; ++token) ids.push_back(token->id);
      begin = at->begin;
      end = next_end;
      std::swap(tokens, next);
      break;
    }
    if (!agree) return false;
  }
  for (const Token& token : tokens) ids.push_back(token.id);
  return true;
}

void Bpe::merge_window(size_t begin, size_t end, Scratch& scratch, std::vector<Token>& tokens) const {
  std::vector<Symbol>& symbols = scratch.symbols;
  PairQueue& queue = scratch.queue;
  const auto count = static_cast<int32_t>(end - begin);
  symbols.resize(count);
  queue.start(merged_.size());
  const auto update = [&](int32_t i) {
    Symbol& symbol = symbols[i];
    symbol.rank = symbol.next < count ? find_rank(symbol.id, symbols[symbol.next].id) : -1;
    if (symbol.rank >= 0) queue.push(symbol.rank, i);
  };
  const auto join = [&](int32_t rank, int32_t place) {
    Symbol& symbol = symbols[place];
    if (symbol.rank != rank) return;  // merged away or changed since it was queued
    symbol.id = merged_[rank];
    Symbol& eaten = symbols[symbol.next];
    eaten.rank = -1;
    symbol.next = eaten.next;
    if (symbol.next < count) symbols[symbol.next].previous = place;
    update(place);
    if (symbol.previous >= 0) update(symbol.previous);
  };
  for (int32_t i = 0; i < count; ++i) symbols[i] = {scratch.part[begin + i], -1, i - 1, i + 1};
  for (int32_t i = 0; i < count; ++i) update(i);
  int32_t rank, early_rank, early_place;
  std::vector<int32_t>& places = scratch.places;
  while (queue.next_rank(rank, places)) {
    for (size_t i = 0; i < places.size(); ++i) {
      if (i + kAhead < places.size()) __builtin_prefetch(&symbols[places[i + kAhead]]);
      while (queue.next_early(rank, places[i], early_rank, early_place)) join(early_rank, early_place);
      join(rank, places[i]);
    }
    while (queue.next_early(rank + 1, 0, early_rank, early_place)) join(early_rank, early_place);
  }
  tokens.clear();
  for (int32_t i = 0; i < count; i = symbols[i].next) tokens.push_back({begin + i, symbols[i].id});
}

}  // namespace duet
