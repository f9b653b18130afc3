#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json_text.h"
#include "text/bpe.h"
#include "text/json_read.h"
#include "text/utf8.h"

namespace duet {

namespace {

void refuse(const nlohmann::json& json, const char* key, bool supported) {
  if (supported) return;
  throw Error(ErrorKind::kUnsupported, fmt::format("tokenizer.json: model.{} = {} is not supported", key,
                                                   json_text(member(json, key))));
}

bool is_empty(const nlohmann::json& value) {
  return value.is_null() || (value.is_string() && value.get_ref<const std::string&>().empty());
}

std::array<char32_t, 256> alphabet_codes() {
  std::array<char32_t, 256> codes{};
  char32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    codes[byte] = printable ? static_cast<char32_t>(byte) : next++;
  }
  return codes;
}

}  // namespace

const std::array<std::string, 256>& byte_level_alphabet() {
  static const std::array<std::string, 256> alphabet = [] {
    std::array<std::string, 256> result;
    const auto codes = alphabet_codes();
    for (int byte = 0; byte < 256; ++byte) append_utf8(result[byte], codes[byte]);
    return result;
  }();
  return alphabet;
}

std::string byte_level_decode(std::string_view token) {
  static const std::array<int16_t, 324> bytes = [] {  // the largest code is 255 + 68
    std::array<int16_t, 324> result;
    result.fill(-1);
    const auto codes = alphabet_codes();
    for (int byte = 0; byte < 256; ++byte) result[codes[byte]] = static_cast<int16_t>(byte);
    return result;
  }();
  std::string out;
  for (size_t at = 0; at < token.size();) {
    const char32_t code = next_code_point(token, at);
    if (code >= bytes.size() || bytes[code] < 0) return std::string(token);
    out.push_back(static_cast<char>(bytes[code]));
  }
  return out;
}

Bpe Bpe::parse(const nlohmann::json& json, bool byte_level) {
  // Files before 2022 have no model.type; "BPE" is then told by the presence of merges.
  const nlohmann::json& type = member(json, "type");
  if (type.is_null() ? !json.contains("merges") : type != "BPE") {
    throw Error(
        ErrorKind::kUnsupported,
        fmt::format("tokenizer.json: model.type {} is not supported, only \"BPE\" is", json_text(type)));
  }
  const nlohmann::json& dropout = member(json, "dropout");
  refuse(json, "dropout", dropout.is_null() || dropout == 0);
  refuse(json, "continuing_subword_prefix", is_empty(member(json, "continuing_subword_prefix")));
  refuse(json, "end_of_word_suffix", is_empty(member(json, "end_of_word_suffix")));
  refuse(json, "byte_fallback", !byte_level || !read_bool(json, "byte_fallback", "model", false));
  Bpe bpe;
  bpe.byte_level_ = byte_level;
  bpe.ignore_merges_ = read_bool(json, "ignore_merges", "model", false);
  bpe.parse_vocab(json);
  bool all_bytes = true;
  for (int32_t id : bpe.byte_id_) all_bytes = all_bytes && id >= 0;
  if (byte_level) {
    refuse(json, "unk_token", member(json, "unk_token").is_null() || all_bytes);
  } else {
    bpe.parse_fallback(json);
  }
  bpe.parse_merges(json);
  return bpe;
}

void Bpe::parse_vocab(const nlohmann::json& json) {
  const nlohmann::json& vocab = read_object(json, "vocab", "model");
  vocab_.reserve(vocab.size());
  std::vector<char> seen;
  for (const auto& [token, value] : vocab.items()) {
    const int32_t id = read_id(value, fmt::format("model.vocab[\"{}\"]", token));
    if (static_cast<size_t>(id) >= seen.size()) seen.resize(std::max<size_t>(id + 1, seen.size() * 2), 0);
    if (seen[id]) {
      throw Error(ErrorKind::kCorrupt,
                  fmt::format("tokenizer.json: model.vocab gives id {} twice, once to \"{}\"", id, token));
    }
    seen[id] = 1;
    max_id_ = std::max(max_id_, id);
    vocab_.emplace(token, id);
  }
  byte_of_id_.assign(max_id_ + 1, -1);
  for (int byte = 0; byte < 256; ++byte) {
    const auto found =
        vocab_.find(byte_level_ ? byte_level_alphabet()[byte] : fmt::format("<0x{:02X}>", byte));
    byte_id_[byte] = found == vocab_.end() ? -1 : found->second;
    if (byte_level_ && byte_id_[byte] >= 0) byte_of_id_[byte_id_[byte]] = static_cast<int16_t>(byte);
  }
}

void Bpe::parse_fallback(const nlohmann::json& json) {
  byte_fallback_ = read_bool(json, "byte_fallback", "model", false);
  fuse_unknown_ = read_bool(json, "fuse_unk", "model", false);
  if (member(json, "unk_token").is_null()) return;
  const auto found = vocab_.find(read_string(json, "unk_token", "model"));
  if (found == vocab_.end())
    throw Error(ErrorKind::kCorrupt, "tokenizer.json: model.unk_token is not in model.vocab");
  unknown_ = found->second;
}

void Bpe::parse_merges(const nlohmann::json& json) {
  const nlohmann::json& list = read_array(json, "merges", "model");
  std::vector<Merge> merges;
  merges.reserve(list.size());
  std::string whole;
  for (size_t rank = 0; rank < list.size(); ++rank) {
    const nlohmann::json& entry = list[rank];
    std::string_view left, right;
    if (entry.is_string()) {
      const std::string_view text = entry.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (space != std::string_view::npos && text.find(' ', space + 1) == std::string_view::npos) {
        left = text.substr(0, space);
        right = text.substr(space + 1);
      }
    } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
      left = entry[0].get_ref<const std::string&>();
      right = entry[1].get_ref<const std::string&>();
    }
    if (left.empty() || right.empty()) {
      throw Error(
          ErrorKind::kCorrupt,
          fmt::format("tokenizer.json: model.merges[{}] should be \"a b\" or [\"a\", \"b\"], found {}", rank,
                      json_text(entry)));
    }
    whole.assign(left).append(right);
    const auto a = vocab_.find(left), b = vocab_.find(right), ab = vocab_.find(whole);
    if (a == vocab_.end() || b == vocab_.end() || ab == vocab_.end()) {
      const std::string missing(a == vocab_.end()   ? left
                                : b == vocab_.end() ? right
                                                    : std::string_view(whole));
      throw Error(ErrorKind::kCorrupt,
                  fmt::format("tokenizer.json: model.merges[{}] needs \"{}\", which model.vocab lacks", rank,
                              missing));
    }
    const uint64_t pair =
        static_cast<uint64_t>(static_cast<uint32_t>(a->second)) << 32 | static_cast<uint32_t>(b->second);
    merges.push_back({pair, static_cast<int32_t>(rank)});
    merged_.push_back(ab->second);
    // A token that bytes can grow into is spelled in the alphabet; what the others add here is harmless.
    const std::string left_bytes = byte_level_ ? byte_level_decode(left) : std::string(left);
    const std::string right_bytes = byte_level_ ? byte_level_decode(right) : std::string(right);
    joins_[static_cast<uint8_t>(left_bytes.back())].set(static_cast<uint8_t>(right_bytes.front()));
  }
  build_table(merges);
}

void Bpe::build_table(const std::vector<Merge>& merges) {
  size_t slots = 16;
  while (slots < merges.size() * 2) slots *= 2;
  table_.assign(slots, {});
  filter_.assign(slots / 8, 0);
  byte_ranks_.assign(256 * 256, -1);
  for (const Merge& merge : merges) {
    const int left = byte_of_id_[merge.pair >> 32], right = byte_of_id_[merge.pair & 0xFFFFFFFF];
    if (left >= 0 && right >= 0) {
      byte_ranks_[left * 256 + right] = merge.rank;
      continue;
    }
    const uint64_t hash = hash_pair(merge.pair);
    filter_[hash >> 6 & (filter_.size() - 1)] |= 1ull << (hash & 63);
    size_t at = hash & (slots - 1);
    while (table_[at].pair != ~0ull && table_[at].pair != merge.pair) at = (at + 1) & (slots - 1);
    table_[at] = merge;  // a pair given twice: the later rank holds, as in Hugging Face
  }
}

}  // namespace duet
