#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
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
    if (!line.empty()) rows.push_back(json::parse(line));
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

}  // namespace
}  // namespace duet
