// Private to tokenizer.cc and tokenizer_load.cc: what a loaded Tokenizer holds.
#pragma once

#include <mutex>

#include "text/bpe.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/token_decoder.h"
#include "text/tokenizer.h"

namespace duet {

struct EncodeScratch {
  Bpe::ScratchPtr bpe = Bpe::make_scratch();
  PreTokenizer::Scratch words;
  std::vector<AddedTokens::Piece> raw_pieces;
  std::vector<AddedTokens::Piece> pieces;
  std::vector<TextSpan> literal;  // of a normalised piece
};

struct Tokenizer::State {
  struct Token {
    uint32_t begin = 0, size = 0;  // in `bytes`
    bool known = false, added = false, special = false;
  };
  struct Special {
    std::string text;
    std::optional<int32_t> id;
  };

  Normalizer normalizer;
  TokenDecoder decoder;
  Bpe bpe;
  PreTokenizer pre_tokenizer;
  AddedTokens raw_added;         // normalized = false
  AddedTokens normalized_added;  // normalized = true
  std::vector<AddedToken> added;
  std::vector<Token> tokens;  // by id
  std::string bytes;
  std::vector<int32_t> prefix, suffix;  // of add_special_tokens
  Special bos, eos, pad, unk;
  std::vector<std::pair<std::string, std::string>> chat_templates;

  // Buffers and word caches of finished encodes, for the next ones.
  std::mutex mutex;
  std::vector<std::unique_ptr<EncodeScratch>> idle;

  /// `text` lies between added tokens; `at_start`: nothing lies before it.
  void encode_text(std::string_view text, bool at_start, bool protect, EncodeScratch& scratch,
                   std::vector<int32_t>& ids) const;
  /// A piece of the whole text, which begins at `offset`.
  void encode_piece(std::string_view text, size_t offset, const EncodeOptions& options,
                    EncodeScratch& scratch, std::vector<int32_t>& ids) const;
};

}  // namespace duet
