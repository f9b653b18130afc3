#include "text/token_decoder.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "text/bpe.h"
#include "text/json_read.h"

namespace duet {

namespace {

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

[[noreturn]] void unsupported(const std::string& what) {
  throw Error(ErrorKind::kUnsupported, "tokenizer.json: " + what);
}

/// Strip.start and Strip.stop.
size_t count_of(const nlohmann::json& json, const char* key, const std::string& path) {
  const nlohmann::json& value = member(json, key);
  if (value.is_number_integer() && value.get<int64_t>() >= 0 && value.get<int64_t>() <= 64)
    return static_cast<size_t>(value.get<int64_t>());
  throw Error(ErrorKind::kCorrupt, fmt::format("tokenizer.json: {}.{} should be a small number", path, key));
}

}  // namespace

int fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  const int high = hex_digit(token[3]), low = hex_digit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

TokenDecoder TokenDecoder::parse(const nlohmann::json& json) {
  TokenDecoder result;
  result.parse_step(json, "decoder", 0);
  if (result.byte_level_ && (result.byte_fallback_ || !result.replace_.empty() || result.strip_start_ > 0))
    unsupported("decoder mixes ByteLevel with others, which is not supported");
  return result;
}

void TokenDecoder::parse_step(const nlohmann::json& json, const std::string& path, int depth) {
  check_nesting(depth, path);
  const std::string type = read_string(json, "type", path);
  if (type == "Sequence") {
    const nlohmann::json& list = read_array(json, "decoders", path);
    for (size_t i = 0; i < list.size(); ++i)
      parse_step(list[i], fmt::format("{}.decoders[{}]", path, i), depth + 1);
  } else if (type == "ByteLevel") {
    byte_level_ = true;
  } else if (type == "ByteFallback") {
    byte_fallback_ = true;
  } else if (type == "Fuse") {
    // Tokens are joined anyway.
  } else if (type == "Replace") {
    const nlohmann::json& pattern = read_object(json, "pattern", path);
    if (!pattern.contains("String")) unsupported(path + ".pattern: only String is supported");
    replace_.emplace_back(read_string(pattern, "String", path + ".pattern"),
                          read_string(json, "content", path));
    if (replace_.back().first.empty())
      throw Error(ErrorKind::kCorrupt, fmt::format("tokenizer.json: {}.pattern.String is empty", path));
  } else if (type == "Strip") {
    if (read_string(json, "content", path) != " ") unsupported(path + ".content: only a space is supported");
    strip_start_ += count_of(json, "start", path);
    if (count_of(json, "stop", path) != 0) unsupported(path + ".stop: only 0 is supported");
  } else if (type == "Metaspace") {
    replace_.emplace_back(read_string(json, "replacement", path), " ");
    const nlohmann::json& scheme = member(json, "prepend_scheme");
    const bool prepends =
        scheme.is_null() ? read_bool(json, "add_prefix_space", path, true) : scheme != "never";
    if (prepends) strip_start_ = 1;
  } else {
    unsupported(
        fmt::format("{}.type \"{}\" is not supported (ByteLevel, ByteFallback, Fuse, Metaspace, Replace, "
                    "Strip and Sequence are)",
                    path, type));
  }
}

std::string TokenDecoder::bytes_of(std::string_view token) const {
  if (byte_level_) return byte_level_decode(token);
  const int byte = byte_fallback_ ? fallback_byte(token) : -1;
  if (byte >= 0) return std::string(1, static_cast<char>(byte));
  std::string out(token);
  for (const auto& [from, to] : replace_) {
    for (size_t at = out.find(from); at != std::string::npos; at = out.find(from, at + to.size()))
      out.replace(at, from.size(), to);
  }
  return out;
}

}  // namespace duet
