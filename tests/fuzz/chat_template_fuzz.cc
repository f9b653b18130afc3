// Input: a template, then behind a zero byte the messages as JSON (without it, a fixed
// conversation). Holds: only duet::Error leaves, within the limits; the spans of request text are
// sorted, disjoint and inside the text, which is valid UTF-8.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "text/chat_template.h"
#include "text/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace duet;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = input.find('\0');
  static constexpr std::string_view kMessages =
      R"([{"role":"system","content":"S é"},{"role":"user","content":"Hi <|x|> 😀"},)"
      R"({"role":"assistant","content":null,"tool_calls":[{"type":"function","function":{"name":"f","arguments":{"a":1.5}}}]},)"
      R"({"role":"tool","content":"{\"a\": [1, true, null]}"}])";
  try {
    const ChatTemplate chat_template = ChatTemplate::parse(input.substr(0, zero));
    ChatOptions options;
    options.tools_json = R"([{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}])";
    options.now_seconds = 1'700'000'000;
    options.limits.steps = 200'000;
    options.limits.bytes = 16 << 20;
    options.limits.output_bytes = 4 << 20;
    const RenderedChat chat =
        chat_template.render(zero == input.npos ? kMessages : input.substr(zero + 1), options);
    size_t last = 0;
    for (const TextSpan& span : chat.content) {
      if (span.begin < last || span.begin >= span.end || span.end > chat.text.size()) std::abort();
      last = span.end;
    }
    if (!is_valid_utf8(chat.text)) std::abort();
  } catch (const Error&) {
    return 0;
  }
  return 0;
}
