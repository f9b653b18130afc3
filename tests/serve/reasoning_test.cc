// The splitter of reasoning and answer: any cut of the text gives the same parts.
#include "serve/reasoning.h"

#include <gtest/gtest.h>

namespace duet {
namespace {

ReasoningSplitter::Parts split(ReasoningStyle style, const std::string& text, size_t piece) {
  ReasoningSplitter splitter(style);
  ReasoningSplitter::Parts all;
  for (size_t at = 0; at <= text.size(); at += piece) {
    const bool last = at + piece > text.size();
    const ReasoningSplitter::Parts parts = splitter.push(text.substr(at, piece), last);
    // Never a part of a tag that comes true later.
    EXPECT_EQ(parts.reasoning.find("</think"), std::string::npos);
    all.reasoning += parts.reasoning;
    all.content += parts.content;
  }
  return all;
}

void expect(ReasoningStyle style, const std::string& text, const std::string& reasoning,
            const std::string& content) {
  for (size_t piece = 1; piece <= text.size() + 1; ++piece) {
    const ReasoningSplitter::Parts parts = split(style, text, piece);
    EXPECT_EQ(parts.reasoning, reasoning) << text << " in pieces of " << piece;
    EXPECT_EQ(parts.content, content) << text << " in pieces of " << piece;
  }
}

TEST(Reasoning, DeepSeekThinksFromTheStart) {
  const auto style = ReasoningStyle::kDeepSeekR1;
  expect(style, "<think>a < b</think>yes", "a < b", "yes");
  expect(style, "a </thin b</think>\n\nyes </think>", "a </thin b", "\n\nyes </think>");
  expect(style, "never done", "never done", "");
  expect(style, "", "", "");
}

TEST(Reasoning, QwenThinksWhereItSaysSo) {
  const auto style = ReasoningStyle::kQwen3;
  expect(style, "\n<think>hm</think>yes", "hm", "yes");
  expect(style, "just <think> yes", "", "just <think> yes");
  expect(style, "<thi", "", "<thi");
  expect(style, "<think>cut </then", "cut </then", "");
}

TEST(Reasoning, OffLeavesTheTextAlone) {
  expect(ReasoningStyle::kNone, "<think>a</think>b", "", "<think>a</think>b");
}

}  // namespace
}  // namespace duet
