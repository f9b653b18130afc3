// What users and file systems do to a command line tool: devices as outputs, impossible sizes,
// variables that make no sense. Each is one line on stderr and exit code 1 or 2, and harms nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "run_cli.h"

namespace duet {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const char* const kTiny = DUET_FIXTURES "/golden/v3-tiny";

std::vector<std::string> tiny(const std::string& verb, const std::vector<std::string>& more) {
  std::vector<std::string> args{verb,        kTiny, "--prompt-token-ids", "1,2,3",
                                "--threads", "1",   "--max-num-seqs",     "4"};
  if (verb == "generate") args.insert(args.end(), {"--max-tokens", "2", "--ignore-eos"});
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

void expect_refused(const std::vector<std::string>& args, const std::string& said) {
  const CliRun result = run(args);
  EXPECT_NE(result.code, kExitOk) << said;
  EXPECT_EQ(newlines(result.err), 1u) << result.err;
  EXPECT_THAT(result.err, HasSubstr(said));
}

TEST(Hostile, DevicesAreWrittenToAndNeverReplaced) {
  // A rename over a device would replace it for the whole machine when root does it: a link to it
  // stands in, which such a rename would replace as well.
  const TempDir dir;
  const std::string full = dir.file("full");
  std::filesystem::create_symlink("/dev/full", full);
  for (const auto& [verb, flag] : std::vector<std::pair<std::string, std::string>>{{"generate", "--output"},
                                                                                   {"generate", "--json"},
                                                                                   {"generate", "--trace"},
                                                                                   {"logits", "--output"}}) {
    const CliRun result = run(tiny(verb, {flag, full}));
    EXPECT_EQ(result.code, kExitError) << verb << " " << flag;
    EXPECT_THAT(result.err, HasSubstr(full));
    EXPECT_TRUE(std::filesystem::is_symlink(full)) << verb << " " << flag << " replaced a device";
    EXPECT_EQ(dir.entries(), 1u) << verb << " " << flag << " left something behind";
  }
  const std::string null = dir.file("null");
  std::filesystem::create_symlink("/dev/null", null);
  for (const char* flag : {"--output", "--json", "--trace"}) {
    const CliRun result = run(tiny("generate", {flag, null}));
    EXPECT_EQ(result.code, kExitOk) << result.err;
    EXPECT_TRUE(std::filesystem::is_symlink(null)) << flag;
  }
}

TEST(Hostile, OutputsThatCannotBeWrittenAreKnownBeforeTheRun) {
  const TempDir dir;
  const std::string nowhere = dir.file("none/file");
  for (const char* flag : {"--output", "--json", "--trace"})
    expect_refused(tiny("generate", {flag, nowhere}), nowhere);
  expect_refused(tiny("logits", {"--output", nowhere}), nowhere);
  expect_refused(tiny("logits", {"--output", dir.file(".")}), "not a plain file");
  EXPECT_EQ(dir.entries(), 0u);
}

TEST(Hostile, SizesThatCannotBe) {
  expect_refused(tiny("generate", {"--kv-cache-memory", "1KiB"}), "one block of 16 tokens takes");
  expect_refused(tiny("generate", {"--kv-cache-memory", "900TiB"}), "It would fit with");
  expect_refused(tiny("generate", {"--max-model-len", "99999999999"}), "expected 1 to 2147483647");
  expect_refused(tiny("generate", {"--max-model-len", "0"}), "expected 1 or more");
  expect_refused(tiny("generate", {"--max-model-len", "5000"}), "max_position_embeddings");
  expect_refused(tiny("generate", {"--max-num-batched-tokens", "99999999999"}), "expected 1 to");
  expect_refused(tiny("generate", {"-tp", "3"}), "rank counts that work: 1, 2, 4, 8");
  expect_refused(tiny("generate", {"-tp", "16", "--expert-path", "all-to-all"}), "rank counts that work");
  std::string many = "5";
  for (int i = 0; i < 4200; ++i) many += ",5";
  expect_refused({"generate", kTiny, "--prompt-token-ids", many}, "4201 tokens");
  expect_refused({"generate", kTiny, "--prompt-token-ids", "1,256"}, "ids 0 to 255");
  const CliRun smallest = run(tiny("generate", {"--max-num-batched-tokens", "1", "-tp", "2", "--dbo", "on"}));
  EXPECT_EQ(smallest.code, kExitOk) << smallest.err;
}

}  // namespace
}  // namespace duet
