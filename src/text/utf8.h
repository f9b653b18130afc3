// UTF-8 at the edges of the text room: everything inside works on valid UTF-8, so text that comes
// in is repaired here and bytes that come out of a model are made complete here.
// Repair is the Unicode recommendation that Rust, Python and Hugging Face follow: each maximal
// invalid part becomes one U+FFFD.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace duet {

inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct Utf8Scan {
  int length;       // bytes that belong together, ≥ 1
  bool valid;       // a whole code point
  bool incomplete;  // not valid yet, but more bytes could complete it (only at the end of the text)
};

/// Looks at the front of a non-empty text.
Utf8Scan scan_utf8(std::string_view text);

bool is_valid_utf8(std::string_view text);
/// `text` with every maximal invalid part replaced by U+FFFD.
std::string repair_utf8(std::string_view text);

/// Bytes of the code point that starts with `lead`; for valid UTF-8 only.
inline int utf8_length(char lead) {
  const auto byte = static_cast<uint8_t>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}
inline bool is_continuation(char c) {
  return (static_cast<uint8_t>(c) & 0xC0) == 0x80;
}

/// Code point at `at` of valid UTF-8; `at` moves behind it.
char32_t next_code_point(std::string_view text, size_t& at);
void append_utf8(std::string& out, char32_t code);

/// Unicode White_Space, as Rust's char::is_whitespace and (nearly) Python's str.isspace see it.
bool is_space(char32_t code);

}  // namespace duet
