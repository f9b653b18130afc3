#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace duet {
namespace {

using nlohmann::ordered_json;

const Tokenizer& deepseek() {
  static const auto tokenizer = Tokenizer::load(DUET_FIXTURES "/deepseek_v3_tokenizer");
  return *tokenizer;
}

TEST(Chat, DeepSeekGoldens) {
  std::ifstream in(DUET_FIXTURES "/deepseek_v3_tokenizer/golden_chat.jsonl");
  int rows = 0;
  for (std::string line; std::getline(in, line); ++rows) {
    const ordered_json row = ordered_json::parse(line);
    ChatOptions options;
    options.add_generation_prompt = row["add_generation_prompt"];
    const ChatPrompt prompt = render_chat(deepseek(), row["messages"].dump(), options);
    EXPECT_EQ(prompt.text, row["text"].get<std::string>());
    EXPECT_EQ(prompt.ids, row["ids"].get<std::vector<int32_t>>());
  }
  EXPECT_EQ(rows, 25);
}

}  // namespace
}  // namespace duet
