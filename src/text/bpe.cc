#include "text/bpe.h"

#include <algorithm>
#include <cstring>
#include <queue>

namespace duet {

namespace {

// Up to here a scan over all pairs per merge beats any queue (measured on English and on code).
constexpr size_t kShortWord = 40;
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
  int32_t rank;    // of the pair with the next symbol, −1: none
  int32_t merged;  // id that pair would become
  int32_t previous, next;
};

// The places where one rank applies: mostly found left to right, so a list with a cursor; what
// comes out of order goes to a heap. Both together give the leftmost place in O(log n).
struct Places {
  std::vector<int32_t> sorted;
  size_t cursor = 0;
  std::priority_queue<int32_t, std::vector<int32_t>, std::greater<>> others;

  void push(int32_t place) {
    if (sorted.empty() || place >= sorted.back()) {
      sorted.push_back(place);
    } else {
      others.push(place);
    }
  }
  bool empty() const { return cursor == sorted.size() && others.empty(); }
  int32_t pop() {
    if (others.empty() || (cursor < sorted.size() && sorted[cursor] <= others.top())) return sorted[cursor++];
    const int32_t place = others.top();
    others.pop();
    return place;
  }
};

}  // namespace

struct Bpe::Scratch {
  std::vector<CachedWord> cache = std::vector<CachedWord>(kCacheSlots);
  std::vector<Symbol> symbols;
  std::vector<int32_t> places_of_rank;  // rank → index into places, −1
  std::vector<Places> places;
};

void Bpe::ScratchDeleter::operator()(Scratch* scratch) const {
  delete scratch;
}
Bpe::ScratchPtr Bpe::make_scratch() {
  return ScratchPtr(new Scratch);
}

Bpe::Merge Bpe::find_merge(int32_t left, int32_t right) const {
  const int left_byte = byte_of_id_[left], right_byte = byte_of_id_[right];
  if (left_byte >= 0 && right_byte >= 0) {
    const std::vector<Merge>& row = byte_merges_[left_byte];
    return row.empty() ? Merge{} : row[right_byte];
  }
  const uint64_t pair =
      static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  const size_t mask = table_.size() - 1;
  for (size_t at = (pair * 0x9E3779B97F4A7C15ull) >> 32 & mask; table_[at].pair != ~0ull;
       at = (at + 1) & mask) {
    if (table_[at].pair == pair) return table_[at].merge;
  }
  return {};
}

void Bpe::encode_bytes(std::string_view word, std::vector<int32_t>& ids) const {
  for (char c : word) {
    const int32_t id = byte_id_[static_cast<uint8_t>(c)];
    if (id >= 0) ids.push_back(id);
  }
}

void Bpe::encode_word(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const {
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
    std::string token;
    for (char c : word) token += byte_level_alphabet()[static_cast<uint8_t>(c)];
    const auto found = vocab_.find(token);
    if (found != vocab_.end()) {
      ids.push_back(found->second);
      done = true;
    }
  }
  if (!done) {
    scratch.symbols.clear();
    for (char c : word) {
      const int32_t id = byte_id_[static_cast<uint8_t>(c)];
      if (id >= 0) scratch.symbols.push_back({id, -1, -1, 0, 0});
    }
    if (scratch.symbols.size() <= kShortWord) {
      merge_short(scratch);
    } else {
      merge_long(scratch);
    }
    for (const Symbol& symbol : scratch.symbols) {
      if (symbol.id >= 0) ids.push_back(symbol.id);
    }
  }
  const size_t count = ids.size() - first;
  if (slot != nullptr && count <= kCachedIds && !word.empty()) {
    slot->length = static_cast<uint8_t>(word.size());
    slot->count = static_cast<uint8_t>(count);
    std::memcpy(slot->bytes, word.data(), word.size());
    std::copy(ids.begin() + static_cast<ptrdiff_t>(first), ids.end(), slot->ids);
  }
}

void Bpe::merge_short(Scratch& scratch) const {
  std::vector<Symbol>& symbols = scratch.symbols;
  size_t count = symbols.size();
  const auto update = [&](size_t i) {
    const Merge merge = i + 1 < count ? find_merge(symbols[i].id, symbols[i + 1].id) : Merge{};
    symbols[i].rank = merge.rank;
    symbols[i].merged = merge.id;
  };
  for (size_t i = 0; i < count; ++i) update(i);
  while (true) {
    size_t best = count;
    for (size_t i = 0; i + 1 < count; ++i) {
      if (symbols[i].rank >= 0 && (best == count || symbols[i].rank < symbols[best].rank)) best = i;
    }
    if (best == count) break;
    symbols[best].id = symbols[best].merged;
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
    --count;
    update(best);
    if (best > 0) update(best - 1);
  }
}

void Bpe::merge_long(Scratch& scratch) const {
  std::vector<Symbol>& symbols = scratch.symbols;
  const auto count = static_cast<int32_t>(symbols.size());
  if (scratch.places_of_rank.size() != static_cast<size_t>(merges_)) {
    scratch.places_of_rank.assign(merges_, -1);
  }
  std::priority_queue<int32_t, std::vector<int32_t>, std::greater<>> ranks;  // those with places left
  const auto update = [&](int32_t i) {
    Symbol& symbol = symbols[i];
    const Merge merge = symbol.next < count ? find_merge(symbol.id, symbols[symbol.next].id) : Merge{};
    symbol.rank = merge.rank;
    symbol.merged = merge.id;
    if (merge.rank < 0) return;
    int32_t& index = scratch.places_of_rank[merge.rank];
    if (index < 0) {
      index = static_cast<int32_t>(scratch.places.size());
      scratch.places.emplace_back();
    }
    Places& places = scratch.places[index];
    if (places.empty()) ranks.push(merge.rank);
    places.push(i);
  };
  for (int32_t i = 0; i < count; ++i) {
    symbols[i].previous = i - 1;
    symbols[i].next = i + 1;
  }
  std::vector<int32_t> used;
  for (int32_t i = 0; i < count; ++i) update(i);
  while (!ranks.empty()) {
    const int32_t rank = ranks.top();
    Places& places = scratch.places[scratch.places_of_rank[rank]];
    const int32_t place = places.pop();
    if (places.empty()) {
      ranks.pop();
      used.push_back(rank);
    }
    Symbol& symbol = symbols[place];
    if (symbol.id < 0 || symbol.rank != rank) continue;  // merged away or changed since it was queued
    symbol.id = symbol.merged;
    Symbol& eaten = symbols[symbol.next];
    symbol.next = eaten.next;
    eaten.id = -1;
    if (symbol.next < count) symbols[symbol.next].previous = place;
    update(place);
    if (symbol.previous >= 0) update(symbol.previous);
  }
  for (int32_t rank : used) scratch.places_of_rank[rank] = -1;
  scratch.places.clear();
}

}  // namespace duet
