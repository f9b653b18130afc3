// The `decoder` of tokenizer.json: from the spelling of a token to the bytes that it stands for. ByteLevel,
// or the parts of SentencePiece-like files: Replace, ByteFallback, Fuse, Strip, Metaspace, and Sequence of
// them. Called while a tokenizer is loaded and for the first bytes of a decoded text.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace duet {

class TokenDecoder {
 public:
  /// Throws Error(kUnsupported) or Error(kCorrupt) with the JSON path.
  static TokenDecoder parse(const nlohmann::json& json);

  bool byte_level() const { return byte_level_; }
  std::string bytes_of(std::string_view token) const;
  /// Spaces that the beginning of a decoded text loses, if it has them.
  size_t strip_start() const { return strip_start_; }

 private:
  void parse_step(const nlohmann::json& json, const std::string& path, int depth);

  bool byte_level_ = false;
  bool byte_fallback_ = false;
  std::vector<std::pair<std::string, std::string>> replace_;
  size_t strip_start_ = 0;
};

/// "<0x0A>" → 10; −1 for any other text.
int fallback_byte(std::string_view token);

}  // namespace duet
