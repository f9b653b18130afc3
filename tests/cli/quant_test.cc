// Verbs about formats and quality, end to end on the demo model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "cli/cli.h"
#include "run_cli.h"

namespace duet {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
namespace fs = std::filesystem;

const std::string kKjv = DUET_MODELS "/kjv-8m";
const std::string kHeldOut = kKjv + "/held_out.txt";
constexpr double kPublished = 22.668;  // models/kjv-8m/README.md

class Scratch {
 public:
  Scratch() : path_(testing::TempDir() + "duet-quant-" + std::to_string(getpid())) {
    fs::remove_all(path_);
    fs::create_directories(path_);
  }
  ~Scratch() { fs::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

json perplexity(const std::string& model, const std::vector<std::string>& flags) {
  std::vector<std::string> args{"eval", "perplexity", model, kHeldOut, "--dtype", "float32", "--json", "-"};
  args.insert(args.end(), flags.begin(), flags.end());
  const CliRun result = run(args);
  EXPECT_EQ(result.code, 0) << result.err;
  return result.code == 0 ? read_json(result.out) : json();
}

TEST(Perplexity, IsThePublishedOneAndInt8LosesLittle) {
  const json plain = perplexity(kKjv, {});
  EXPECT_NEAR(plain["perplexity"], kPublished, 0.01);
  EXPECT_EQ(plain["scored_tokens"], 8080);
  // Windows that overlap give more context: never worse on prose.
  EXPECT_LT(perplexity(kKjv, {"--stride", "128"})["perplexity"], plain["perplexity"]);
  EXPECT_NEAR(perplexity(kKjv, {"-q", "w8a8"})["perplexity"], kPublished, 0.005 * kPublished);
  const CliRun gap = run({"eval", "perplexity", kKjv, kHeldOut, "--window", "64", "--stride", "65"});
  EXPECT_EQ(gap.code, kExitUsage);
  EXPECT_THAT(gap.err, HasSubstr("--stride"));
  EXPECT_EQ(run({"eval", "perplexity", kKjv, "/nowhere.txt"}).code, kExitError);
  EXPECT_THAT(run({"eval", "perplexity", kKjv}).err, HasSubstr("FILE is missing"));
}

TEST(Quantize, WritesACheckpointThatRunsAsTheFlagDoes) {
  const Scratch dir;
  const CliRun made = run({"quantize", kKjv, dir / "int8", "--scheme", "w8a8"});
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_THAT(made.out, HasSubstr("int8"));
  EXPECT_TRUE(fs::exists(dir / "int8/tokenizer.json"));
  EXPECT_THAT(run({"inspect", dir / "int8"}).out, HasSubstr("compressed-tensors W8A8"));
  const double stored = perplexity(dir / "int8", {})["perplexity"];
  EXPECT_NEAR(stored, kPublished, 0.005 * kPublished);
  // The same int8 weights, but the head and kv_b_proj as they were.
  EXPECT_NEAR(stored, perplexity(kKjv, {"-q", "w8a8", "--float-head"})["perplexity"], 1e-4 * kPublished);

  ASSERT_EQ(run({"quantize", dir / "int8", dir / "wide/", "--scheme", "bf16"}).code, 0);
  EXPECT_NEAR(perplexity(dir / "wide", {})["perplexity"], kPublished, 0.005 * kPublished);

  const CliRun again = run({"quantize", kKjv, dir / "int8"});
  EXPECT_EQ(again.code, kExitError);
  EXPECT_THAT(again.err, HasSubstr("no empty directory"));
  EXPECT_EQ(run({"quantize", dir / "nothing", dir / "out"}).code, kExitError);
  for (const auto& entry : fs::directory_iterator(dir / ""))
    EXPECT_THAT(entry.path().filename().string(), testing::AnyOf("int8", "wide"))
        << "nothing half made stays";
}

TEST(BenchEngine, CountsEveryCase) {
  const CliRun result = run({"bench", "engine", kKjv, "--prompt-tokens", "40", "--gen-tokens", "3", "--batch",
                             "1,3", "--context", "10", "--repeats", "2", "-q", "w8a8", "--json", "-"});
  ASSERT_EQ(result.code, 0) << result.err;
  const json rows = read_json(result.out);
  ASSERT_EQ(rows.size(), 3);
  EXPECT_EQ(rows[0]["phase"], "prefill");
  EXPECT_EQ(rows[2]["batch"], 3);
  for (const json& row : rows) {
    EXPECT_GT(row["tokens_per_second"], 0);
    EXPECT_EQ(row["runs"].size(), 2);
    EXPECT_EQ(row["weights"], "w8a8");
  }
  EXPECT_EQ(run({"bench", "engine", kKjv, "--batch", "0"}).code, kExitUsage);
  EXPECT_THAT(run({"bench", "engine", kKjv, "--gen-tokens", "100000"}).err, HasSubstr("positions"));
}

}  // namespace
}  // namespace duet
