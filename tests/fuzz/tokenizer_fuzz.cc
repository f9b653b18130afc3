// Input: one byte of mode, then either a tokenizer.json (and, behind a zero byte, a
// tokenizer_config.json) to load and use, or text for a small tokenizer that is known to load.
// Holds: only duet::Error leaves; streaming equals decoding; bytes survive where all bytes are known.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"
#include "text/bpe.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace {

using namespace duet;

/// All bytes, some merges, the pattern of DeepSeek-V3 and one of every kind of added token.
std::string small_tokenizer() {
  std::string vocab, merges;
  int id = 0;
  for (const std::string& token : byte_level_alphabet()) {
    vocab += (id > 0 ? ",\"" : "\"") + (token == "\"" || token == "\\" ? "\\" + token : token) +
             "\":" + std::to_string(id);
    ++id;
  }
  for (std::string_view pair :
       {"t h", "th e", "Ġ the", "a a", "aa aa", "aaaa aaaa", "Ġ Ġ", "ĠĠ ĠĠ", "! !", "1 2", "Ġ a"}) {
    const size_t space = pair.find(' ');
    vocab += ",\"" + std::string(pair.substr(0, space)) + std::string(pair.substr(space + 1)) +
             "\":" + std::to_string(id++);
    merges += (merges.empty() ? "\"" : ",\"") + std::string(pair) + "\"";
  }
  std::string added;
  for (std::string_view flags :
       {R"("content":"<|x|>","special":true)", R"("content":"<|l|>","lstrip":true)",
        R"("content":"<|r|>","rstrip":true)", R"("content":"word","single_word":true)",
        R"("content":"<|x|>y","normalized":false)", R"("content":"  ","normalized":true)"}) {
    added +=
        (added.empty() ? "{\"id\":" : ",{\"id\":") + std::to_string(id++) + "," + std::string(flags) + "}";
  }
  return R"({"added_tokens":[)" + added +
         R"(],"normalizer":null,"decoder":{"type":"ByteLevel"},"post_processor":null,)" +
         R"("pre_tokenizer":{"type":"Sequence","pretokenizers":[)" +
         R"({"type":"Split","pattern":{"Regex":"\\p{N}{1,3}"},"behavior":"Isolated","invert":false},)" +
         R"({"type":"Split","pattern":{"Regex":"[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"},"behavior":"Isolated","invert":false},)" +
         R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]},)" +
         R"("model":{"type":"BPE","vocab":{)" + vocab + "},\"merges\":[" + merges + "]}}";
}

void require(bool holds) {
  if (!holds) std::abort();
}

void use(const Tokenizer& tokenizer, std::string_view text, bool round_trip) {
  const auto ids = tokenizer.encode(text, {.add_special_tokens = true});
  const std::string decoded = tokenizer.decode(ids, false);
  Detokenizer detokenizer(tokenizer, false);
  std::string streamed;
  for (int32_t id : ids) streamed += detokenizer.push(id);
  streamed += detokenizer.finish();
  require(streamed == decoded);
  require(is_valid_utf8(decoded));
  if (round_trip) require(decoded == repair_utf8(text));
  if (!is_valid_utf8(text)) return;
  const TextSpan all{0, text.size()};
  for (int32_t id : tokenizer.encode(text, {.literal = std::span(&all, 1)})) {
    require(!tokenizer.is_added(id) || !round_trip);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto tokenizer = Tokenizer::from_json(small_tokenizer());
  if (size == 0) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data + 1), size - 1);
  try {
    if (data[0] % 2 == 0) {
      // lstrip and rstrip tokens swallow white space, so those texts do not come back whole.
      const bool strips = input.find("<|l|>") != input.npos || input.find("<|r|>") != input.npos;
      use(*tokenizer, input, !strips);
    } else {
      const size_t zero = input.find('\0');
      const auto loaded = Tokenizer::from_json(
          input.substr(0, zero), zero == input.npos ? std::string_view() : input.substr(zero + 1));
      use(*loaded, "Hello  world 123\n\t<|x|> é😀 aaaa!!", false);
    }
  } catch (const Error&) {
    return 0;
  }
  return 0;
}
