// Prompt files, tokenising, traces and output files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json_text.h"
#include "cli/output_file.h"
#include "cli/progress.h"
#include "cli/prompts.h"
#include "cli/trace_summary.h"
#include "duet/llm.h"
#include "run_cli.h"

namespace duet {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::string error_of(const std::string& path, bool chat = false) {
  try {
    read_prompts(path, chat);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

TEST(Prompts, JsonLinesGiveOneOfThree) {
  const TempDir dir;
  const std::string path = dir.write("p.jsonl",
                                     "{\"prompt\": \"a\"}\r\n\n"
                                     "{\"prompt_token_ids\": [0, 5], \"prompt\": null, \"id\": 7}\n"
                                     "{\"messages\": [{\"role\": \"user\", \"content\": \"b\"}]}");
  const std::vector<Prompt> prompts = read_prompts(path, false);
  ASSERT_EQ(prompts.size(), 3u);
  EXPECT_EQ(prompts[0].text, "a");
  EXPECT_THAT(prompts[1].token_ids, ElementsAre(0, 5));
  EXPECT_EQ(prompts[2].messages_json, R"([{"role":"user","content":"b"}])");
  EXPECT_FALSE(only_token_ids(prompts));
}

TEST(Prompts, TextHasOnePerLineAndChatWrapsIt) {
  const TempDir dir;
  const std::string path = dir.write("p.txt", "one\r\n\n  two\nthree");
  const std::vector<Prompt> plain = read_prompts(path, false);
  ASSERT_EQ(plain.size(), 3u);
  EXPECT_EQ(plain[0].text, "one");
  EXPECT_EQ(plain[1].text, "  two");
  const std::vector<Prompt> chat = read_prompts(path, true);
  EXPECT_EQ(chat[2].text, "");
  EXPECT_EQ(read_json(chat[2].messages_json), read_json(R"([{"role": "user", "content": "three"}])"));
}

TEST(Prompts, BadLinesAreNamedByNumber) {
  const TempDir dir;
  const std::string good = "{\"prompt\": \"a\"}\n\n";
  const std::pair<const char*, const char*> cases[] = {
      {"{\"prompt\": \"a\"", "not a JSON object"},
      {"[1]", "not a JSON object"},
      {"{\"text\": \"a\"}", "none of"},
      {"{\"prompt\": \"a\", \"prompt_token_ids\": [1]}", "both"},
      {"{\"prompt\": 3}", "must be a string"},
      {"{\"prompt_token_ids\": []}", "not empty"},
      {"{\"prompt_token_ids\": [1, -2]}", "-2"},
      {"{\"prompt_token_ids\": [1, 2.5]}", "2.5"},
      {"{\"prompt_token_ids\": [99999999999]}", "99999999999"},
      {"{\"messages\": []}", "not empty"},
      {"{\"messages\": \"hi\"}", "list"},
      {"\xff\xfe", "not a JSON object"},
  };
  for (const auto& [line, expected] : cases) {
    const std::string path = dir.write("bad.jsonl", good + line + "\n");
    EXPECT_THAT(error_of(path), AllOf(HasSubstr("bad.jsonl:3: "), HasSubstr(expected))) << line;
  }
  EXPECT_THAT(error_of(dir.write("empty.jsonl", "\n")), HasSubstr("no prompt"));
  EXPECT_THAT(error_of(dir.file("absent.jsonl")), HasSubstr("cannot read"));
  EXPECT_THAT(error_of(dir.write("p.csv", "a")), HasSubstr(".txt or .jsonl"));
}

TEST(Prompts, ExactlyOneSourceIsGiven) {
  EXPECT_THAT(run({"generate", "m", "--prompt", "a", "--prompt-token-ids", "1"}).err,
              HasSubstr("both given"));
  EXPECT_THAT(run({"generate", "m"}).err, HasSubstr("no prompt"));
  EXPECT_THAT(run({"logits", "m", "--output", "x"}).err, HasSubstr("no prompt"));
  EXPECT_THAT(run({"logits", "m", "--prompt-token-ids", "1"}).err, HasSubstr("--output"));
  EXPECT_THAT(run({"generate", "m"}, {{"DUET_PROMPT", "a"}, {"DUET_PROMPTS", "b.txt"}}).err,
              AllOf(HasSubstr("DUET_PROMPT"), HasSubstr("both given")));
}

TEST(OutputFile, AppearsWhenCommitted) {
  const TempDir dir;
  std::ostringstream standard;
  {
    OutputFile file(dir.write("x", "old"), standard);
    file.stream() << "new";
    EXPECT_EQ(read_all(dir.file("x")), "old");
  }
  EXPECT_EQ(read_all(dir.file("x")), "old");
  EXPECT_EQ(dir.entries(), 1u);  // nothing left behind
  {
    OutputFile file(dir.file("x"), standard);
    file.stream() << "new";
    file.commit();
  }
  EXPECT_EQ(read_all(dir.file("x")), "new");
  EXPECT_EQ(dir.entries(), 1u);
  OutputFile("-", standard).stream() << "shown";
  EXPECT_EQ(standard.str(), "shown");
  EXPECT_THROW(OutputFile("/nowhere/x", standard), Error);
}

TEST(OutputFile, FullDiskIsAnError) {
  std::ostringstream standard;
  OutputFile file("/dev/full", standard);
  file.stream() << "x";
  EXPECT_THROW(file.commit(), Error);
}

std::vector<json> json_lines(const std::string& path) {
  std::vector<json> rows;
  for (const std::string& line : lines_of(read_all(path))) rows.push_back(read_json(line));
  return rows;
}

TEST(Tokenize, GoldenTexts) {
  const std::string dir = DUET_FIXTURES "/deepseek_v3_tokenizer";
  const TempDir temp;
  const CliRun result =
      run({"tokenize", dir, "--input", dir + "/golden_text.jsonl", "--output", temp.file("out.jsonl")});
  ASSERT_EQ(result.code, 0) << result.err;
  const std::vector<json> expected = json_lines(dir + "/golden_text.jsonl");
  const std::vector<json> found = json_lines(temp.file("out.jsonl"));
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(found[i].size(), 2u);
    EXPECT_EQ(found[i]["ids"], expected[i]["ids"]) << expected[i]["text"];
    EXPECT_EQ(found[i]["decoded"], expected[i]["decoded"]) << expected[i]["text"];
  }
}

TEST(Tokenize, GoldenChats) {
  const std::string dir = DUET_FIXTURES "/deepseek_v3_tokenizer";
  const TempDir temp;
  const CliRun result =
      run({"tokenize", dir, "--input", dir + "/golden_chat.jsonl", "--output", temp.file("out.jsonl")});
  ASSERT_EQ(result.code, 0) << result.err;
  const std::vector<json> expected = json_lines(dir + "/golden_chat.jsonl");
  const std::vector<json> found = json_lines(temp.file("out.jsonl"));
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(found[i].size(), 2u);
    EXPECT_EQ(found[i]["text"], expected[i]["text"]);
    EXPECT_EQ(found[i]["ids"], expected[i]["ids"]) << expected[i]["text"];
  }
}

TEST(Tokenize, FlagsAct) {
  const std::string dir = DUET_MODELS "/kjv-8m";
  const TempDir temp;
  const std::string input = temp.write("in.jsonl",
                                       "{\"text\": \"In the beginning\"}\n{\"messages\": [{\"role\": "
                                       "\"user\", \"content\": \"<｜User｜>\"}]}\n");
  const auto rows = [&](const char* flag) {
    std::vector<std::string> args{"tokenize", dir, "--input", input, "--output", "-"};
    if (*flag) args.emplace_back(flag);
    const CliRun result = run(args);
    EXPECT_EQ(result.code, 0) << result.err;
    std::vector<json> lines;
    for (const std::string& line : lines_of(result.out)) lines.push_back(read_json(line));
    return lines;
  };
  const std::vector<json> plain = rows("");
  const std::vector<json> special = rows("--add-special-tokens");
  const std::vector<json> guarded = rows("--no-control-tokens-in-content");
  ASSERT_EQ(plain.size(), 2u);
  EXPECT_EQ(special[0]["ids"].size(), plain[0]["ids"].size() + 1);
  EXPECT_EQ(special[1], plain[1]);
  EXPECT_EQ(guarded[0], plain[0]);
  EXPECT_EQ(guarded[1]["text"], plain[1]["text"]);
  EXPECT_GT(guarded[1]["ids"].size(), plain[1]["ids"].size());
}

TEST(Tokenize, ErrorsNameTheLine) {
  const std::string dir = DUET_MODELS "/kjv-8m";
  const TempDir temp;
  const std::string input = temp.write("in.jsonl", "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n");
  const CliRun result = run({"tokenize", dir, "--input", input, "--output", temp.file("out.jsonl")});
  EXPECT_EQ(result.code, kExitError);
  EXPECT_THAT(result.err, AllOf(HasSubstr("in.jsonl:2: "), HasSubstr("\"text\"")));
  EXPECT_FALSE(std::filesystem::exists(temp.file("out.jsonl")));
  EXPECT_THAT(run({"tokenize", dir, "--input", temp.file("no"), "--output", "-"}).err,
              HasSubstr("cannot read"));
  EXPECT_EQ(run({"tokenize", dir, "--output", "-"}).code, kExitUsage);
}

// Two ranks, one step of two micro-batches; rank 1 is 2 µs faster in the second collective.
const char* const kTrace =
    R"({"displayTimeUnit": "ms", "duet": {"version": "0.1.0", "ranks": 2}, "traceEvents": [
{"ph":"M","pid":0,"name":"process_name","args":{"name":"rank 0"}},
{"ph":"X","pid":0,"tid":0,"name":"attn_core","ts":0,"dur":10,"args":{"step":1,"layer":0,"micro_batch":0,"wait_us":0}},
{"ph":"X","pid":0,"tid":1,"name":"attn_reduce","ts":10,"dur":8,"args":{"step":1,"layer":0,"micro_batch":0,"wait_us":10}},
{"ph":"X","pid":0,"tid":0,"name":"attn_core","ts":10,"dur":10,"args":{"step":1,"layer":0,"micro_batch":1,"wait_us":0}},
{"ph":"X","pid":0,"tid":1,"name":"attn_reduce","ts":20,"dur":8,"args":{"step":1,"layer":0,"micro_batch":1,"wait_us":2}},
{"ph":"X","pid":0,"tid":0,"name":"experts","ts":24,"dur":6,"args":{"step":1,"layer":0,"micro_batch":0,"wait_us":4}},
{"ph":"X","pid":1,"tid":0,"name":"attn_core","ts":0,"dur":9,"args":{"step":1,"layer":0,"micro_batch":0,"wait_us":0}},
{"ph":"X","pid":1,"tid":1,"name":"attn_reduce","ts":10,"dur":8,"args":{"step":1,"layer":0,"micro_batch":0,"wait_us":10}},
{"ph":"X","pid":1,"tid":1,"name":"attn_reduce","ts":20,"dur":6,"args":{"step":1,"layer":0,"micro_batch":1,"wait_us":2}},
{"ph":"s","pid":0,"tid":0,"name":"event","id":1,"ts":9},
{"ph":"f","bp":"e","pid":0,"tid":1,"name":"event","id":1,"ts":10}]})";

TEST(Trace, AddsUp) {
  const TraceSummary s = summarize_trace(kTrace, "t.json");
  EXPECT_EQ(s.version, "0.1.0");
  EXPECT_EQ(s.ranks, 2);
  EXPECT_EQ(s.steps, 1);
  EXPECT_EQ(s.steps_overlapped, 1);
  EXPECT_DOUBLE_EQ(s.span_ms, 0.030);
  EXPECT_DOUBLE_EQ(s.compute_ms, 0.026);
  EXPECT_DOUBLE_EQ(s.comm_ms, 0.014);  // 8 + min(8, 6)
  // Rank 0 waited 4 µs before experts. Rank 1 computed until 9 and its lane of communication ended at 26.
  EXPECT_DOUBLE_EQ(s.per_rank[0].exposed_ms, 0.004);
  EXPECT_DOUBLE_EQ(s.per_rank[1].exposed_ms, 0.017);
  EXPECT_DOUBLE_EQ(s.exposed_ms, 0.017);
  ASSERT_EQ(s.kinds.size(), 3u);
  EXPECT_EQ(s.kinds[0].kind, "attn_core");
  EXPECT_EQ(s.kinds[0].count, 3);
  EXPECT_NEAR(s.kinds[0].total_ms, 0.029, 1e-12);
  EXPECT_NEAR(s.kinds[0].mean_us, 29.0 / 3, 1e-9);
  EXPECT_NEAR(s.kinds[0].share, 29.0 / 35, 1e-12);
  EXPECT_EQ(s.kinds[2].kind, "attn_reduce");
  EXPECT_EQ(s.kinds[2].lane, 1);
}

TEST(Trace, WithoutWaitsTheGapsCount) {
  json trace = read_json(kTrace);
  for (json& event : trace["traceEvents"]) {
    if (event["ph"] == "X") event["args"].erase("wait_us");
  }
  EXPECT_DOUBLE_EQ(summarize_trace(json_text(trace), "t").per_rank[0].exposed_ms, 0.004);
  for (json& event : trace["traceEvents"]) {
    if (event["ph"] == "X") event["args"]["schedule"] = "sequential";
  }
  EXPECT_EQ(summarize_trace(json_text(trace), "t").steps_overlapped, 0);
  EXPECT_EQ(summarize_trace(json_text(trace), "t").steps, 1);
}

TEST(Trace, ExpertLoadsOfRanks) {
  json trace = read_json(kTrace);
  EXPECT_EQ(summarize_trace(json_text(trace), "t").expert_skew, 0);
  EXPECT_THAT(to_text(summarize_trace(json_text(trace), "t")), testing::Not(HasSubstr("expert load")));
  const auto add = [&](int rank, int layer, int64_t pairs) {
    trace["traceEvents"].push_back(
        {{"ph", "X"},
         {"pid", rank},
         {"tid", 0},
         {"name", "experts"},
         {"ts", 30},
         {"dur", 1},
         {"args", {{"step", 1}, {"layer", layer}, {"micro_batch", 0}, {"expert_rows", pairs}}}});
  };
  add(0, 1, 30);
  add(1, 1, 10);
  add(0, 2, 0);
  add(1, 2, 40);
  const TraceSummary s = summarize_trace(json_text(trace), "t");
  EXPECT_DOUBLE_EQ(s.expert_skew, 50.0 / 40);
  EXPECT_DOUBLE_EQ(s.worst_expert_skew, 2);
  EXPECT_EQ(s.worst_expert_layer, 2);
  EXPECT_THAT(to_text(s), HasSubstr("expert load    1.25 of the mean on the busiest rank; layer 2: 2.00"));
}

TEST(Trace, VerbPrintsAndWritesJson) {
  const TempDir dir;
  const std::string path = dir.write("t.json", kTrace);
  const CliRun text = run({"trace", "summary", path, "--json", dir.file("s.json")});
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_THAT(text.out, AllOf(HasSubstr("attn_reduce"), HasSubstr("hidden share"), HasSubstr("exposed")));
  const json summary = read_json(read_all(dir.file("s.json")));
  EXPECT_DOUBLE_EQ(summary["comm_ms"].get<double>(), 0.014);
  EXPECT_EQ(run({"trace", "sumary", path}).code, kExitUsage);
  EXPECT_THAT(run({"trace", "sumary", path}).err, HasSubstr("Did you mean trace summary?"));
  EXPECT_EQ(run({"trace"}).code, kExitUsage);
  const CliRun chart = run({"trace", "chart", path, "--layer", "0", "--output", "-"});
  EXPECT_EQ(chart.code, kExitOk) << chart.err;
  EXPECT_THAT(chart.out, HasSubstr("<svg"));
  EXPECT_THAT(chart.out, HasSubstr("</svg>"));
  EXPECT_EQ(run({"trace", "chart", path, "--layer", "77", "--output", "-"}).code, kExitError);
  EXPECT_EQ(run({"trace", "chart", path}).code, kExitUsage);
}

TEST(Trace, OtherFilesAreRefused) {
  const TempDir dir;
  const std::pair<const char*, const char*> cases[] = {
      {"", "not JSON"},
      {"[1]", "traceEvents"},
      {R"({"traceEvents": []})", "not one that duet"},
      {R"({"duet": {}, "traceEvents": [3]})", "traceEvents[0]"},
      {R"({"duet": {}, "traceEvents": [{"ph": "X", "name": "a", "args": {}}]})", "\"pid\""},
      {R"({"duet": {}, "traceEvents": [{"ph": "X", "pid": 0, "tid": 2, "name": "a", "args": {}}]})",
       "\"tid\" is 2"},
      {R"({"duet": {}, "traceEvents": [{"ph": "X", "pid": 1e300, "tid": 2, "name": "a", "args": {}}]})",
       "\"pid\""},
      {R"({"duet": {}, "traceEvents": [{"ph": "X", "pid": 0, "tid": 0, "ts": 1, "dur": -1, "name": "a", "args": {}}]})",
       "negative"},
  };
  for (const auto& [text, expected] : cases) {
    const CliRun result = run({"trace", "summary", dir.write("t.json", text)});
    EXPECT_EQ(result.code, kExitError);
    EXPECT_THAT(result.err, AllOf(HasSubstr("t.json: "), HasSubstr(expected))) << text;
  }
  EXPECT_THAT(run({"trace", "summary", dir.file("no.json")}).err, HasSubstr("cannot read"));
}

TEST(Progress, BarOnATerminalLinesElsewhere) {
  const Environment env;
  Progress progress;
  progress.requests = 4;
  progress.requests_done = 1;
  progress.prefill_tokens = 30;
  progress.decode_tokens = 70;
  progress.seconds = 2;
  progress.exposed_ms = 5;
  progress.step_ms = 50;
  const auto shown = [&](bool terminal) {
    std::ostringstream out, err;
    const CliContext context{env, out, err, terminal, "duet"};
    {
      ProgressView view(context, 0, 0);
      view.loading(0.5);
      view.generating(progress);
    }
    return err.str();
  };
  EXPECT_THAT(shown(true), AllOf(HasSubstr("\r"), HasSubstr("1/4 requests"), HasSubstr("50 tokens/s")));
  EXPECT_EQ(newlines(shown(true)), 0u);
  EXPECT_THAT(shown(false), AllOf(HasSubstr("exposed communication 5.0 ms (10.0 %)"), Not(HasSubstr("\r"))));
  EXPECT_EQ(newlines(shown(false)), 2u);
}

}  // namespace
}  // namespace duet
