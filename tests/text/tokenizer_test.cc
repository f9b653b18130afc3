#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json_text.h"
#include "text/detokenizer.h"

namespace duet {
namespace {

using nlohmann::json;

const Tokenizer& deepseek() {
  static const auto tokenizer = Tokenizer::load(DUET_FIXTURES "/deepseek_v3_tokenizer");
  return *tokenizer;
}

std::vector<json> read_jsonl(const std::string& path) {
  std::ifstream in(path);
  std::vector<json> rows;
  for (std::string line; std::getline(in, line);) {
    if (!line.empty()) rows.push_back(read_json(line));
  }
  EXPECT_FALSE(rows.empty()) << path;
  return rows;
}

TEST(Tokenizer, DeepSeekGoldens) {
  for (const json& row : read_jsonl(DUET_FIXTURES "/deepseek_v3_tokenizer/golden_text.jsonl")) {
    const std::string text = row["text"];
    const auto ids = row["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(deepseek().encode(text), ids) << row["text"];
    EXPECT_EQ(deepseek().decode(ids, false), row["decoded"].get<std::string>()) << row["text"];
    std::string streamed;
    Detokenizer detokenizer(deepseek(), false);
    for (int32_t id : ids) streamed += detokenizer.push(id);
    EXPECT_EQ(streamed + detokenizer.finish(), row["decoded"].get<std::string>());
  }
}

std::string file_with(const std::string& pre_tokenizer, const std::string& extra = "") {
  return R"({"decoder":{"type":"ByteLevel"},"pre_tokenizer":)" + pre_tokenizer + extra +
         R"(,"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}})";
}

TEST(Tokenizer, RefusesByNameAndPath) {
  const auto error = [](const std::string& file) -> std::string {
    try {
      Tokenizer::from_json(file);
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  EXPECT_EQ(error(file_with(R"({"type":"ByteLevel"})")), "no error");
  EXPECT_THAT(
      error(file_with(R"({"type":"Sequence","pretokenizers":[{"type":"CharDelimiterSplit"}]})")),
      testing::HasSubstr("pre_tokenizer.pretokenizers[0].type \"CharDelimiterSplit\" is not supported"));
  EXPECT_THAT(error(file_with(R"({"type":"ByteLevel"})", R"(,"normalizer":{"type":"Lowercase"})")),
              testing::HasSubstr("normalizer.type \"Lowercase\" is not supported"));
  EXPECT_THAT(error(R"({"decoder":{"type":"ByteLevel"},"model":{"type":"Unigram"}})"),
              testing::HasSubstr("model.type"));
  EXPECT_THAT(
      error(R"({"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}})"),
      testing::HasSubstr("model.merges[0] needs \"b\""));
  EXPECT_THAT(error("{"), testing::HasSubstr("not valid JSON"));
  EXPECT_THAT(error(std::string(100000, '[')), testing::HasSubstr("nested deeper"));
}

TEST(Tokenizer, LongRunsMergeAsShortOnesDo) {
  // 8 a's are one token of this vocabulary, so a run of any length is that token and a short rest.
  const auto eight = deepseek().encode("aaaaaaaa");
  ASSERT_EQ(eight.size(), 1u);
  const auto ids = deepseek().encode(std::string(100'000, 'a'));
  EXPECT_EQ(ids, std::vector<int32_t>(12'500, eight[0]));
  const std::string spaces(100'000, ' ');
  EXPECT_EQ(deepseek().decode(deepseek().encode(spaces + "x"), false), spaces + "x");
}

TEST(Tokenizer, InvalidUtf8IsRepairedOrRefused) {
  EXPECT_EQ(deepseek().encode("a\xFF\xE2\x82z"), deepseek().encode("a\uFFFD\uFFFDz"));
  const TextSpan all{0, 2};
  EXPECT_THROW(deepseek().encode("a\xFF", {.literal = std::span(&all, 1)}), Error);
}

TEST(Detokenizer, HoldsBackUnfinishedCodePoints) {
  const auto emoji = deepseek().encode("\U0001FAE0");
  ASSERT_GT(emoji.size(), 1u);
  Detokenizer detokenizer(deepseek());
  for (size_t i = 0; i + 1 < emoji.size(); ++i) EXPECT_EQ(detokenizer.push(emoji[i]), "");
  EXPECT_EQ(detokenizer.push(emoji.back()), "\U0001FAE0");
  EXPECT_EQ(detokenizer.push(emoji[0]), "");
  EXPECT_EQ(detokenizer.finish(), "\uFFFD");
  EXPECT_EQ(detokenizer.push(*deepseek().eos_id()), "");  // special: skipped
}

}  // namespace
}  // namespace duet
