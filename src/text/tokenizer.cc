#include "text/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "text/tokenizer_state.h"
#include "text/utf8.h"

namespace duet {

namespace {

constexpr size_t kMaxTextBytes = 1 << 30;  // symbols are indexed with 32 bits
// Two cores encode at once at most in practice; more idle scratch (2 MiB each) would be waste.
constexpr size_t kMaxIdle = 4;

}  // namespace

Tokenizer::Tokenizer() : state_(std::make_unique<State>()) {}
Tokenizer::~Tokenizer() = default;

void Tokenizer::State::encode_text(std::string_view text, bool at_start, bool protect, EncodeScratch& scratch,
                                   std::vector<int32_t>& ids) const {
  pre_tokenizer.split(text, at_start, scratch.words);
  for (std::string_view word : scratch.words.words) {
    const size_t first = ids.size();
    bpe.encode_word(word, *scratch.bpe, ids);
    if (!protect) continue;
    for (size_t i = first; i < ids.size(); ++i) {
      if (!tokens[ids[i]].added) continue;
      // The vocabulary itself spells an added token (ignore_merges, or odd merges).
      ids.resize(first);
      bpe.encode_unmerged(word, ids);
      break;
    }
  }
}

void Tokenizer::State::encode_piece(std::string_view text, size_t offset, const EncodeOptions& options,
                                    EncodeScratch& scratch, std::vector<int32_t>& ids) const {
  const bool at_start = offset == 0, protect = !options.literal.empty();
  std::span<const TextSpan> literal = options.literal;
  std::string normalized;
  if (!normalizer.empty()) {
    normalized = normalizer.apply(text, offset, literal, scratch.literal);
    text = normalized;
    literal = scratch.literal;
    offset = 0;
  }
  scratch.pieces.clear();
  normalized_added.split(text, offset, literal, scratch.pieces);
  for (const AddedTokens::Piece& piece : scratch.pieces) {
    if (piece.id >= 0) {
      ids.push_back(piece.id);
      continue;
    }
    const std::string_view part = text.substr(piece.begin - offset, piece.end - piece.begin);
    encode_text(part, at_start && piece.begin == offset, protect, scratch, ids);
  }
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  if (text.size() > kMaxTextBytes) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("a text of {} bytes to tokenize, at most {} are possible: split it", text.size(),
                            kMaxTextBytes));
  }
  std::string repaired;
  if (!is_valid_utf8(text)) {
    if (!options.literal.empty()) {
      throw Error(ErrorKind::kInvalidArgument, "the text to tokenize is not valid UTF-8");
    }
    repaired = repair_utf8(text);
    text = repaired;
  }
  State& state = *state_;
  std::unique_ptr<EncodeScratch> scratch;
  {
    const std::lock_guard lock(state.mutex);
    if (!state.idle.empty()) {
      scratch = std::move(state.idle.back());
      state.idle.pop_back();
    }
  }
  if (!scratch) scratch = std::make_unique<EncodeScratch>();

  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 8);
  if (options.add_special_tokens) ids = state.prefix;
  scratch->raw_pieces.clear();
  state.raw_added.split(text, 0, options.literal, scratch->raw_pieces);
  for (const AddedTokens::Piece& piece : scratch->raw_pieces) {
    if (piece.id >= 0) {
      ids.push_back(piece.id);
    } else {
      state.encode_piece(text.substr(piece.begin, piece.end - piece.begin), piece.begin, options, *scratch,
                         ids);
    }
  }
  if (options.add_special_tokens) ids.insert(ids.end(), state.suffix.begin(), state.suffix.end());

  const std::lock_guard lock(state.mutex);
  if (state.idle.size() < kMaxIdle) state.idle.push_back(std::move(scratch));
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (int32_t id : ids) {
    if (skip_special && is_special(id)) continue;
    bytes.append(token_bytes(id));
  }
  const size_t spaces = std::min(bytes.find_first_not_of(' '), bytes.size());
  bytes.erase(0, std::min(spaces, state_->decoder.strip_start()));
  return is_valid_utf8(bytes) ? bytes : repair_utf8(bytes);
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  const State::Token& token = state_->tokens[id];
  return std::string_view(state_->bytes).substr(token.begin, token.size);
}

std::optional<int32_t> Tokenizer::token_id(std::string_view token) const {
  const auto found = state_->bpe.vocab().find(token);
  if (found != state_->bpe.vocab().end()) return found->second;
  for (const AddedToken& added : state_->added) {
    if (added.content == token) return added.id;
  }
  return std::nullopt;
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() && state_->tokens[id].special;
}
bool Tokenizer::is_added(int32_t id) const {
  return id >= 0 && id < vocab_size() && state_->tokens[id].added;
}
size_t Tokenizer::strip_start() const {
  return state_->decoder.strip_start();
}
int32_t Tokenizer::vocab_size() const {
  return static_cast<int32_t>(state_->tokens.size());
}
std::optional<int32_t> Tokenizer::bos_id() const {
  return state_->bos.id;
}
std::optional<int32_t> Tokenizer::eos_id() const {
  return state_->eos.id;
}
std::optional<int32_t> Tokenizer::pad_id() const {
  return state_->pad.id;
}
std::string_view Tokenizer::bos_token() const {
  return state_->bos.text;
}
std::string_view Tokenizer::eos_token() const {
  return state_->eos.text;
}
std::string_view Tokenizer::pad_token() const {
  return state_->pad.text;
}
std::string_view Tokenizer::unk_token() const {
  return state_->unk.text;
}
bool Tokenizer::add_bos_token() const {
  return state_->bos.id && !state_->prefix.empty() && state_->prefix.front() == *state_->bos.id;
}
bool Tokenizer::add_eos_token() const {
  return state_->eos.id && !state_->suffix.empty() && state_->suffix.back() == *state_->eos.id;
}
const std::vector<std::pair<std::string, std::string>>& Tokenizer::chat_templates() const {
  return state_->chat_templates;
}

}  // namespace duet
