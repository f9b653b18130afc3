#include "text/detokenizer.h"

#include <utility>

#include "text/tokenizer.h"
#include "text/utf8.h"

namespace duet {

std::string Detokenizer::push(int32_t id) {
  if (skip_special_ && tokenizer_->is_special(id)) return {};
  std::string_view bytes = tokenizer_->token_bytes(id);
  for (; strip_ > 0 && !bytes.empty(); --strip_) {
    if (bytes.front() != ' ')
      strip_ = 1;  // the text has begun
    else
      bytes.remove_prefix(1);
  }
  pending_.append(bytes);
  std::string out;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Utf8Scan scan = scan_utf8(rest);
    if (scan.incomplete) break;
    out.append(scan.valid ? rest.substr(0, scan.length) : kReplacement);
    rest.remove_prefix(scan.length);
  }
  pending_ = std::string(rest);
  return out;
}

void Detokenizer::reset() {
  strip_ = at_start_ ? tokenizer_->strip_start() : 0;
}

std::string Detokenizer::finish() {
  reset();
  return std::exchange(pending_, {}).empty() ? std::string() : std::string(kReplacement);
}

}  // namespace duet
