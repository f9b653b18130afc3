// Byte-pair merging against its definition: the lowest rank first, leftmost first, one merge at a time.
#include "text/bpe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

namespace duet {
namespace {

using nlohmann::json;

struct Model {
  json file;
  std::map<std::pair<std::string, std::string>, int> ranks;
  std::map<std::string, int> ids;
};

/// Random merges over the letters abc…, in an order that training would never give: a token may be
/// made in several ways, and merges of long tokens may come before those that make their parts.
Model random_model(std::mt19937& random, int letters, int merges) {
  Model model;
  std::vector<std::string> tokens;
  for (int i = 0; i < letters; ++i) tokens.emplace_back(1, static_cast<char>('a' + i));
  std::vector<std::pair<std::string, std::string>> pairs;
  while (static_cast<int>(pairs.size()) < merges) {
    const std::string left = tokens[random() % tokens.size()], right = tokens[random() % tokens.size()];
    if (left.size() + right.size() > 12 || model.ranks.contains({left, right})) continue;
    model.ranks[{left, right}] = 0;
    pairs.push_back({left, right});
    tokens.push_back(left + right);
  }
  std::shuffle(pairs.begin(), pairs.begin() + static_cast<ptrdiff_t>(random() % pairs.size()), random);
  for (const std::string& token : tokens) model.ids.emplace(token, static_cast<int>(model.ids.size()));
  json list = json::array();
  for (size_t rank = 0; rank < pairs.size(); ++rank) {
    model.ranks[pairs[rank]] = static_cast<int>(rank);
    list.push_back({pairs[rank].first, pairs[rank].second});
  }
  model.file = {{"type", "BPE"}, {"vocab", model.ids}, {"merges", list}};
  return model;
}

std::vector<int32_t> by_definition(const Model& model, const std::string& word) {
  std::vector<std::string> parts;
  for (char c : word) parts.emplace_back(1, c);
  std::vector<int> ranks(parts.size());  // of the pair that begins here
  const auto look_up = [&](size_t i) {
    const auto found = i + 1 < parts.size() ? model.ranks.find({parts[i], parts[i + 1]}) : model.ranks.end();
    ranks[i] = found == model.ranks.end() ? std::numeric_limits<int>::max() : found->second;
  };
  for (size_t i = 0; i < parts.size(); ++i) look_up(i);
  while (true) {
    const auto best = std::min_element(ranks.begin(), ranks.end());
    if (*best == std::numeric_limits<int>::max()) break;
    const auto at = static_cast<size_t>(best - ranks.begin());
    parts[at] += parts[at + 1];
    parts.erase(parts.begin() + static_cast<ptrdiff_t>(at) + 1);
    ranks.erase(best + 1);
    look_up(at);
    if (at > 0) look_up(at - 1);
  }
  std::vector<int32_t> ids;
  for (const std::string& part : parts) ids.push_back(model.ids.at(part));
  return ids;
}

std::vector<int32_t> encode(const Bpe& bpe, std::string_view word) {
  const auto scratch = Bpe::make_scratch();
  std::vector<int32_t> ids;
  bpe.encode_word(word, *scratch, ids);
  return ids;
}

TEST(Bpe, MergesByDefinition) {
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    const int letters = 1 + static_cast<int>(random() % 5);
    const Model model = random_model(random, letters, 1 + static_cast<int>(random() % 40));
    const Bpe bpe = Bpe::parse(model.file);
    for (size_t size : {2, 7, 39, 41, 150}) {
      std::string word;
      while (word.size() < size) word += static_cast<char>('a' + random() % letters);
      EXPECT_EQ(encode(bpe, word), by_definition(model, word)) << model.file << word;
    }
  }
}

TEST(Bpe, LongWordsMergeAsOneThoughInWindows) {
  // Long enough for several windows; runs, periods and noise.
  std::mt19937 random(6);
  for (int round = 0; round < 12; ++round) {
    const int letters = 1 + round % 4;
    const Model model = random_model(random, letters, 4 + 3 * round);
    const Bpe bpe = Bpe::parse(model.file);
    std::string word;
    while (word.size() < 4500) {
      const auto period = 1 + random() % 3;
      for (auto i = random() % (round % 2 == 0 ? 9 : 900); i-- > 0;) {
        word += word.size() < period ? 'a' : word[word.size() - period];
      }
      word += static_cast<char>('a' + random() % letters);
    }
    EXPECT_EQ(encode(bpe, word), by_definition(model, word)) << model.file;
  }
}

TEST(Bpe, AMergeMayDependOnTheFarEnd) {
  // A word in which every pair of 64 letters occurs once (a de Bruijn sequence), the pairs ranked from
  // its end to its start: the last two letters merge first, then the two before them, … No window
  // knows where tokens begin before it holds the end of the word.
  constexpr int kLetters = 64;
  std::string word;
  for (int i = 0; i < kLetters; ++i) {
    word += static_cast<char>('0' + i);
    for (int j = i + 1; j < kLetters; ++j) word += {static_cast<char>('0' + i), static_cast<char>('0' + j)};
  }
  json vocab, merges = json::array();
  for (int i = 0; i < kLetters; ++i) vocab[std::string(1, static_cast<char>('0' + i))] = i;
  for (size_t i = word.size() - 1; i-- > 0;) {
    merges.push_back({word.substr(i, 1), word.substr(i + 1, 1)});
    vocab[word.substr(i, 2)] = kLetters + static_cast<int>(i);
  }
  const Bpe bpe = Bpe::parse({{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}});
  for (size_t size : {word.size(), word.size() - 1}) {
    std::vector<int32_t> expected;
    if (size % 2 == 1) expected.push_back(0);
    for (size_t i = size % 2; i < size; i += 2) expected.push_back(kLetters + static_cast<int>(i));
    EXPECT_EQ(encode(bpe, word.substr(0, size)), expected);
  }
}

}  // namespace
}  // namespace duet
