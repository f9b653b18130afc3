// Tokenizers and chat templates in the forms of the Llama and Qwen families, against Hugging Face's
// `tokenizers` and jinja2 (tools/make_tokenizer_fixtures.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json_text.h"
#include "text/chat_template.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace duet {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

class FamilyTokenizer : public testing::TestWithParam<const char*> {
 protected:
  std::string dir_ = std::string(DUET_FIXTURES "/tokenizers/") + GetParam();
  std::unique_ptr<Tokenizer> tokenizer_ = Tokenizer::load(dir_);

  std::vector<ordered_json> rows(const char* file) const {
    std::ifstream in(dir_ + "/" + file);
    std::vector<ordered_json> result;
    for (std::string line; std::getline(in, line);) result.push_back(read_ordered_json(line));
    EXPECT_FALSE(result.empty()) << file;
    return result;
  }
  std::string streamed(const std::vector<int32_t>& ids, bool continuation) const {
    Detokenizer detokenizer(*tokenizer_, false, continuation);
    std::string text;
    for (int32_t id : ids) text += detokenizer.push(id);
    return text + detokenizer.finish();
  }
};

TEST_P(FamilyTokenizer, Texts) {
  EncodeOptions special;
  special.add_special_tokens = true;
  for (const ordered_json& row : rows("golden_text.jsonl")) {
    const std::string text = row["text"], decoded = row["decoded"];
    SCOPED_TRACE(text);
    const auto ids = row["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer_->encode(text), ids);
    EXPECT_EQ(tokenizer_->encode(text, special), row["with_special"].get<std::vector<int32_t>>());
    EXPECT_EQ(tokenizer_->decode(ids, false), decoded);
    EXPECT_EQ(streamed(ids, false), decoded);
    EXPECT_TRUE(streamed(ids, true).ends_with(decoded)) << "only a leading space more";
  }
}

TEST_P(FamilyTokenizer, Chats) {
  for (const ordered_json& row : rows("golden_chat.jsonl")) {
    ChatOptions options;
    options.add_generation_prompt = true;
    const std::string variables = json_text(row["variables"]);
    options.variables_json = variables;
    const ChatPrompt prompt = render_chat(*tokenizer_, json_text(row["messages"]), options);
    EXPECT_EQ(prompt.text, row["text"].get<std::string>());
    EXPECT_EQ(prompt.ids, row["ids"].get<std::vector<int32_t>>());
  }
}

INSTANTIATE_TEST_SUITE_P(Forms, FamilyTokenizer,
                         testing::Values("llama2", "llama2_metaspace", "llama3", "mistral", "mistral_bytes",
                                         "qwen"),
                         [](const auto& form) { return std::string(form.param); });

std::string error_of(const json& file) {
  try {
    Tokenizer::from_json(json_text(file));
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

json llama2_file() {
  std::ifstream in(DUET_FIXTURES "/tokenizers/llama2/tokenizer.json");
  return read_json(std::move(in));
}

TEST(FamilyTokenizers, RefusesByNameAndPath) {
  using testing::HasSubstr;
  json file = llama2_file();
  file["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "BertNormalizer"}}}}};
  EXPECT_THAT(error_of(file),
              HasSubstr("normalizer.normalizers[0].type \"BertNormalizer\" is not supported"));
  file = llama2_file();
  file["decoder"] = {{"type", "WordPiece"}};
  EXPECT_THAT(error_of(file), HasSubstr("decoder.type \"WordPiece\" is not supported"));
  file["decoder"] = {{"type", "ByteLevel"}};
  EXPECT_THAT(error_of(file), HasSubstr("only one of them is ByteLevel"));
  file = llama2_file();
  file["model"]["unk_token"] = "<none>";
  EXPECT_THAT(error_of(file), HasSubstr("model.unk_token"));
  file = llama2_file();
  file["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "last"}};
  EXPECT_THAT(error_of(file), HasSubstr("pre_tokenizer.prepend_scheme \"last\""));
}

TEST(FamilyTokenizers, UnknownCharactersWithoutFallback) {
  json file = llama2_file();
  file["model"]["byte_fallback"] = false;
  const auto fused = Tokenizer::from_json(json_text(file));
  const int32_t unknown = *fused->token_id("<unk>");
  const auto count = [&](const Tokenizer& t, const char* text) {
    const auto ids = t.encode(text);
    return std::count(ids.begin(), ids.end(), unknown);
  };
  EXPECT_EQ(count(*fused,
                  "a\xE2\x82\xAC\xE2\x82\xAC\xE2\x82\xAC"
                  "b\xE2\x82\xAC"),
            2);
  file["model"]["fuse_unk"] = false;
  EXPECT_EQ(count(*Tokenizer::from_json(json_text(file)),
                  "a\xE2\x82\xAC\xE2\x82\xAC\xE2\x82\xAC"
                  "b\xE2\x82\xAC"),
            4);
}

/// Literal text never forms a control token, and is normalised like all other.
TEST(FamilyTokenizers, LiteralSpansSurviveNormalisation) {
  const auto qwen = Tokenizer::load(DUET_FIXTURES "/tokenizers/qwen");
  const std::string text = "<|im_start|>cafe\xCC\x81 <|im_end|>x<|im_end|>";
  const TextSpan content{12, text.size() - 10};
  EncodeOptions options;
  options.literal = {&content, 1};
  const auto ids = qwen->encode(text, options);
  EXPECT_EQ(ids.front(), *qwen->token_id("<|im_start|>"));
  EXPECT_EQ(std::count(ids.begin(), ids.end(), *qwen->token_id("<|im_end|>")), 1);
  EXPECT_EQ(qwen->decode(ids, false), "<|im_start|>caf\xC3\xA9 <|im_end|>x<|im_end|>");
}

}  // namespace
}  // namespace duet
