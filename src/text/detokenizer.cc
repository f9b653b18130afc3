#include "text/detokenizer.h"

#include <utility>

#include "text/tokenizer.h"
#include "text/utf8.h"

namespace duet {

std::string Detokenizer::push(int32_t id) {
  if (skip_special_ && tokenizer_->is_special(id)) return {};
  pending_.append(tokenizer_->token_bytes(id));
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

std::string Detokenizer::finish() {
  return std::exchange(pending_, {}).empty() ? std::string() : std::string(kReplacement);
}

}  // namespace duet
