// The types of flag values: parsing of one value, with messages that name the flag.
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>

#include "cli/flags.h"
#include "cli/usage_error.h"

namespace duet {
namespace {

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

}  // namespace

bool parse_switch(const std::string& text, const std::string& shown) {
  const std::string value = lower(text);
  for (const char* on : {"1", "true", "on", "yes"}) {
    if (value == on) return true;
  }
  for (const char* off : {"0", "false", "off", "no", ""}) {
    if (value == off) return false;
  }
  throw UsageError(fmt::format("{} is \"{}\"; expected 1, true, on, yes or 0, false, off, no", shown, text));
}

std::vector<int32_t> parse_token_ids(const std::string& text, const std::string& shown) {
  std::vector<int32_t> ids;
  const char* at = text.data();
  const char* end = at + text.size();
  while (true) {
    while (at < end && *at == ' ') ++at;
    int32_t id = 0;
    const auto [stop, error] = std::from_chars(at, end, id);
    if (error != std::errc() || id < 0) break;
    ids.push_back(id);
    at = stop;
    while (at < end && *at == ' ') ++at;
    if (at == end) return ids;
    if (*at != ',') break;
    ++at;
  }
  throw UsageError(fmt::format(
      "{} is \"{}\"; expected token ids (0 or more) separated by commas, such as 0,5,7", shown, text));
}

}  // namespace duet
