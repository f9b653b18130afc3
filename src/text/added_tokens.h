// Added tokens (`<｜User｜>`, `<|im_start|>`, …): found in the text before anything else, longest
// first at the leftmost place, with Hugging Face's flags. Two sets are matched one after the other:
// tokens with normalized = false on the raw text, the others in what is left.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace duet {

struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool special = false;      // dropped by decode(skip_special)
  bool lstrip = false;       // eats white space to its left
  bool rstrip = false;       // … to its right
  bool single_word = false;  // only where no word character touches it
  bool normalized = true;
};

/// Bytes [begin, end) of a text.
struct TextSpan {
  size_t begin = 0;
  size_t end = 0;
};

class AddedTokens {
 public:
  /// A piece of text (id < 0) or an added token.
  struct Piece {
    size_t begin, end;
    int32_t id;
  };

  void add(const AddedToken& token);
  /// Appends the pieces of `text`, in order. Tokens that overlap a span of `literal` (sorted,
  /// disjoint) are not formed. Offsets are those of `text` plus `offset`, and so are the spans'.
  void split(std::string_view text, size_t offset, std::span<const TextSpan> literal,
             std::vector<Piece>& pieces) const;
  bool empty() const { return tokens_.empty(); }

 private:
  struct Node {
    std::vector<std::pair<uint8_t, int32_t>> children;  // sorted by byte
    int32_t token = -1;                                 // index into tokens_
  };
  int32_t child(int32_t node, uint8_t byte) const;
  int32_t longest(std::string_view text, size_t at, size_t limit) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_ = std::vector<Node>(1);
  std::vector<uint8_t> starts_ = std::vector<uint8_t>(256, 0);  // bytes a token can start with
};

}  // namespace duet
