#include "engine/cost_cache.h"
#include "base/json_text.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "engine/planner.h"
#include "engine/probe_batch.h"

namespace duet {
namespace {

namespace fs = std::filesystem;

class CostCacheTest : public testing::Test {
 protected:
  CostCacheTest() : dir_((fs::path(testing::TempDir()) / "duet-costs-XXXXXX").string()) {
    EXPECT_NE(mkdtemp(dir_.data()), nullptr);
  }
  ~CostCacheTest() override { fs::remove_all(dir_); }

  static std::string text_of(const std::string& file) {
    std::ifstream in(file);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  std::string dir_;
};

TEST_F(CostCacheTest, KeepsWhatWasWrittenForItsKeyOnly) {
  const CostCache cache(dir_ + "/made", R"({"a": 1})"), other(dir_ + "/made", R"({"a": 2})");
  EXPECT_FALSE(cache.read());
  cache.write(R"({"costs": [1, 2]})");
  EXPECT_EQ(read_json(cache.read().value()), (nlohmann::json{{"costs", {1, 2}}}));
  EXPECT_FALSE(other.read());
  fs::copy_file(cache.file(), other.file());  // even under its name
  EXPECT_FALSE(other.read());
}

TEST_F(CostCacheTest, WhatIsDamagedOldOrOfTheFutureIsOfNoUse) {
  const CostCache cache(dir_, "{}");
  cache.write("{}");
  const std::string good = text_of(cache.file());
  const auto reads = [&](const std::string& text) {
    std::ofstream(cache.file()) << text;
    return cache.read().has_value();
  };
  EXPECT_TRUE(reads(good));
  EXPECT_FALSE(reads(good.substr(0, good.size() / 2)));
  EXPECT_FALSE(reads("[]"));
  for (int64_t days : {-31, 2}) {
    nlohmann::json j = read_json(good);
    j["measured_at"] = j["measured_at"].get<int64_t>() + days * 86400;
    EXPECT_FALSE(reads(json_text(j))) << days;
  }
}

TEST_F(CostCacheTest, NothingIsKeptWithoutADirectoryOrWhereNoneCanBe) {
  const CostCache none("", "{}");
  none.write("{}");
  EXPECT_TRUE(none.file().empty());
  EXPECT_FALSE(none.read());
  std::ofstream(dir_ + "/file") << "in the way";
  const CostCache blocked(dir_ + "/file", "{}");
  blocked.write("{}");
  EXPECT_FALSE(blocked.read());
}

TEST_F(CostCacheTest, Directory) {
  EXPECT_EQ(cost_cache_directory("off"), "");
  EXPECT_EQ(cost_cache_directory("/some/where"), "/some/where");
}

TEST_F(CostCacheTest, AStartTakesWhatTheLastOneMeasured) {
  RankOptions options;
  options.model = std::string(DUET_FIXTURES) + "/golden/v3-tiny";
  options.ranks = 2;
  options.threads_per_rank = 1;
  options.max_batched_tokens = 4;
  options.max_logits_rows = 4;
  options.kv_cache_bytes = 1 << 20;
  options.max_micro_batches = 2;
  options.cost_cache = dir_;
  // Steps that mostly sleep take the same time on a busy machine.
  options.link = LinkShape{1e9, 8'000'000};
  const auto measured = [&] {
    const auto group = RankGroup::start(options);
    group->calibrate();
    StepBatch batch = probe_batch({ProbePhase::kPrefill, 4, 1, 0, 0}, group->info().block_size, 100);
    SplitPolicy policy;
    policy.dbo = DboMode::kAuto;
    EXPECT_NE(group->plan(batch, policy).kind, "costs unknown");
    return text_of(group->cost_file());
  };
  const std::string first = measured();
  EXPECT_FALSE(first.empty());
  EXPECT_EQ(measured(), first);  // taken: not written again
  options.wire = DType::kF32;
  EXPECT_NE(measured(), first);
  options.wire = DType::kBf16;
  const auto measured_anew = [&](const nlohmann::json& kept) {
    for (const auto& file : fs::directory_iterator(dir_)) std::ofstream(file.path()) << json_text(kept);
    return read_json(measured()) != kept;
  };
  nlohmann::json j = read_json(first);
  j["costs"]["curves"].clear();  // of another program's kinds
  EXPECT_TRUE(measured_anew(j));
  j = read_json(first);  // of a link that was a thousand times as slow
  for (auto& [kind, points] : j["costs"]["curves"].items())
    for (auto& point : points) point[1] = point[1].get<double>() * 1000;
  EXPECT_TRUE(measured_anew(j));
}

}  // namespace
}  // namespace duet
