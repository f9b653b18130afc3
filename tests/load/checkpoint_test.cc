#include "load/checkpoint.h"

#include <array>

#include "helpers.h"

namespace duet {
namespace {

// One f32 [2, 3] tensor per name, its values counting from the file's first value on.
void write_shard(const TempDir& dir, const std::string& file, const std::vector<std::string>& names) {
  static const std::array<float, 6> values = {1, 2, 3, 4, 5, 6};
  std::vector<SafetensorsTensor> tensors;
  for (const std::string& name : names) tensors.push_back({{name, DType::kF32, {2, 3}}, values.data()});
  write_safetensors(dir.file(file), tensors);
}

constexpr std::array<int64_t, 2> kShape = {2, 3};
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kShard1 = "model-00001-of-00002.safetensors";
constexpr const char* kShard2 = "model-00002-of-00002.safetensors";

std::string index_of(const std::string& entries) {
  return R"({"metadata":{},"weight_map":{)" + entries + "}}";
}
std::string good_index() {
  return index_of(R"("a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors")");
}

TEST(Checkpoint, OpensOneFileAndIgnoresOthersBesideIt) {
  const TempDir dir;
  write_shard(dir, "model.safetensors", {"b", "a"});
  write_shard(dir, "golden_logits.safetensors", {"a"});
  const Checkpoint c = Checkpoint::open(dir.path());
  ASSERT_EQ(c.tensors().size(), 2u);
  EXPECT_EQ(c.tensors()[0].name, "a");
  EXPECT_EQ(c.total_bytes(), 48u);
  const TensorInfo& a = c.require("a", kShape);
  EXPECT_EQ(a.dtype, DType::kF32);
  EXPECT_EQ(a.file, dir.file("model.safetensors"));
  float last = 0;
  std::memcpy(&last, a.data + 20, 4);
  EXPECT_EQ(last, 6);
  EXPECT_EQ(c.find("c"), nullptr);
}

TEST(Checkpoint, RequireNamesFileTensorAndShapes) {
  const TempDir dir;
  write_shard(dir, "model.safetensors", {"a"});
  const Checkpoint c = Checkpoint::open(dir.path());
  expect_error(
      ErrorKind::kNotFound, [&] { c.require("model.norm.weight", kShape); }, dir.path(), "model.safetensors",
      "\"model.norm.weight\" is missing", "[2, 3]");
  const std::array<int64_t, 2> transposed = {3, 2};
  expect_error(
      ErrorKind::kCorrupt, [&] { c.require("a", transposed); }, "model.safetensors", "\"a\"",
      "has shape [2, 3]", "asks for [3, 2]");
  expect_error(
      ErrorKind::kCorrupt, [&] { c.require("a", std::span(transposed).first(1)); }, "asks for [3]");
  const std::array<int64_t, 3> deeper = {2, 3, 1};
  expect_error(
      ErrorKind::kCorrupt, [&] { c.require("a", deeper); }, "asks for [2, 3, 1]");
}

TEST(Checkpoint, OpensShardsWithAndWithoutIndex) {
  const TempDir dir;
  write_shard(dir, kShard1, {"a"});
  write_shard(dir, kShard2, {"b", "not in the index"});
  EXPECT_EQ(Checkpoint::open(dir.path()).tensors().size(), 3u);
  dir.write(kIndex, good_index());
  const Checkpoint c = Checkpoint::open(dir.path());
  EXPECT_EQ(c.tensors().size(), 3u);
  EXPECT_EQ(c.require("b", kShape).file, dir.file(kShard2));
}

TEST(Checkpoint, ASingleFileWinsOverAnIndexOfOtherFiles) {
  const TempDir dir;
  dir.write(kIndex, good_index());
  write_shard(dir, "model.safetensors", {"a", "b"});
  EXPECT_EQ(Checkpoint::open(dir.path()).require("b", kShape).file, dir.file("model.safetensors"));
}

TEST(Checkpoint, OpensTheOnlyFileWhateverItsName) {
  const TempDir dir;
  write_shard(dir, "weights.safetensors", {"a"});
  EXPECT_EQ(Checkpoint::open(dir.path()).tensors().size(), 1u);
  write_shard(dir, "more.safetensors", {"b"});
  expect_error(
      ErrorKind::kNotFound, [&] { Checkpoint::open(dir.path()); }, dir.path(), "several", "no index");
}

TEST(Checkpoint, NamesWhatIsMissing) {
  const TempDir dir;
  expect_error(
      ErrorKind::kNotFound, [&] { Checkpoint::open(dir.file("none")); }, "no such directory");
  expect_error(
      ErrorKind::kNotFound, [&] { Checkpoint::open(dir.path()); }, dir.path(), "no *.safetensors file");
  write_shard(dir, kShard2, {"b"});
  expect_error(
      ErrorKind::kNotFound, [&] { Checkpoint::open(dir.path()); }, dir.path(), "shard 1 of 2 is missing");
  dir.write(kIndex, good_index());
  expect_error(
      ErrorKind::kNotFound, [&] { Checkpoint::open(dir.path()); }, kShard1, "missing", kIndex);
}

TEST(Checkpoint, RefusesShardsOfDifferentSets) {
  const TempDir dir;
  write_shard(dir, kShard1, {"a"});
  write_shard(dir, "model-00001-of-00003.safetensors", {"b"});
  expect_error(
      ErrorKind::kCorrupt, [&] { Checkpoint::open(dir.path()); }, "different sets");
}

TEST(Checkpoint, RefusesADuplicateTensor) {
  const TempDir dir;
  write_shard(dir, kShard1, {"a"});
  write_shard(dir, kShard2, {"b", "a"});
  dir.write(kIndex, good_index());
  expect_error(
      ErrorKind::kCorrupt, [&] { Checkpoint::open(dir.path()); }, "\"a\"", "two files", kShard1, kShard2);
}

TEST(Checkpoint, RefusesAnIndexThatTheShardsContradict) {
  const TempDir dir;
  write_shard(dir, kShard1, {"a"});
  write_shard(dir, kShard2, {"c"});
  dir.write(kIndex, good_index());
  expect_error(
      ErrorKind::kCorrupt, [&] { Checkpoint::open(dir.path()); }, kShard2, "no tensor \"b\"");
  write_shard(dir, kShard1, {"a", "b"});  // b exists, but elsewhere
  expect_error(
      ErrorKind::kCorrupt, [&] { Checkpoint::open(dir.path()); }, kShard2, "no tensor \"b\"", "it is in",
      kShard1);
}

TEST(Checkpoint, RefusesABrokenIndex) {
  const TempDir dir;
  write_shard(dir, kShard1, {"a"});
  const auto with_index = [&](const std::string& text) {
    dir.write(kIndex, text);
    return [&] { Checkpoint::open(dir.path()); };
  };
  expect_error(ErrorKind::kCorrupt, with_index("{"), kIndex, "not valid JSON");
  expect_error(ErrorKind::kCorrupt, with_index("[]"), kIndex, "expected an object");
  expect_error(ErrorKind::kCorrupt, with_index("{}"), kIndex, "weight_map", "missing");
  expect_error(ErrorKind::kCorrupt, with_index(index_of("")), kIndex, "weight_map");
  expect_error(ErrorKind::kCorrupt, with_index(index_of(R"("a":1)")), kIndex, "\"a\"",
               "expected a file name");
  expect_error(ErrorKind::kCorrupt, with_index(index_of(R"("a":"x.safetensors","a":"x.safetensors")")),
               kIndex, "\"a\" appears twice");
  for (const char* path :
       {"../x.safetensors", "/etc/x.safetensors", "", "..", "x.bin", "x\\u0000.safetensors"}) {
    expect_error(ErrorKind::kCorrupt, with_index(index_of(R"("a":")" + std::string(path) + "\"")), kIndex,
                 "without a path");
  }
}

TEST(Checkpoint, ACorruptShardIsNamed) {
  const TempDir dir;
  write_shard(dir, kShard1, {"a"});
  write_shard(dir, kShard2, {"b"});
  dir.write(kIndex, good_index());
  std::filesystem::resize_file(dir.file(kShard2), std::filesystem::file_size(dir.file(kShard2)) - 1);
  expect_error(
      ErrorKind::kCorrupt, [&] { Checkpoint::open(dir.path()); }, kShard2, "\"b\"", "truncated");
}

TEST(Checkpoint, OpensTheFixturesAndTheModel) {
  for (const char* name : {"v3-tiny", "v3-tiny-bf16", "v2-tiny", "v2lite-tiny"}) {
    SCOPED_TRACE(name);
    const Checkpoint c = Checkpoint::open(std::string(DUET_FIXTURES) + "/golden/" + name);
    const std::array<int64_t, 2> embedding = {256, 64};
    const TensorInfo& info = c.require("model.embed_tokens.weight", embedding);
    EXPECT_EQ(info.dtype, std::string(name) == "v3-tiny-bf16" ? DType::kBf16 : DType::kF32);
  }
  const Checkpoint kjv = Checkpoint::open(std::string(DUET_MODELS) + "/kjv-8m");
  EXPECT_GT(kjv.total_bytes(), 10u << 20);
}

}  // namespace
}  // namespace duet
