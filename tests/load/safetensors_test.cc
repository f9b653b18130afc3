#include "load/safetensors.h"

#include <sys/resource.h>

#include <csignal>
#include <numeric>

#include "helpers.h"

namespace duet {
namespace {

SafetensorsHeader parse(const std::string& bytes, std::optional<uint64_t> file_size = std::nullopt) {
  return parse_safetensors_header(std::as_bytes(std::span(bytes.data(), bytes.size())),
                                  file_size.value_or(bytes.size()), "crafted.safetensors");
}

// A header of tensor "w" with one field after another replaced.
std::string header_of(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"w":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

template <typename... Pieces>
void expect_corrupt(const std::string& header, size_t data_bytes, const Pieces&... pieces) {
  SCOPED_TRACE(header);
  expect_error(
      ErrorKind::kCorrupt, [&] { parse(safetensors_bytes(header, data_bytes)); }, "crafted.safetensors",
      pieces...);
}

TEST(SafetensorsHeader, ReadsTensorsInFileOrderAndMetadata) {
  const SafetensorsHeader h = parse(safetensors_bytes(
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
      R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"none":{"dtype":"F16","shape":[0,7],"data_offsets":[16,16]}}   )",
      16));
  ASSERT_EQ(h.tensors.size(), 3u);
  EXPECT_EQ(h.tensors[0].name, "a");
  EXPECT_EQ(h.tensors[0].dtype, DType::kF32);
  EXPECT_TRUE(h.tensors[0].shape.empty());
  EXPECT_EQ(h.tensors[1].name, "b");
  EXPECT_EQ(h.tensors[1].dtype_name, "BF16");
  EXPECT_EQ(h.tensors[1].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(h.tensors[1].begin, 4u);
  EXPECT_EQ(h.tensors[1].end, 16u);
  EXPECT_EQ(h.tensors[2].name, "none");
  ASSERT_EQ(h.metadata.size(), 1u);
  EXPECT_EQ(h.metadata[0].second, "pt");
}

TEST(SafetensorsHeader, KnowsPublishedDTypesThatDuetHasNoTypeFor) {
  const SafetensorsHeader h = parse(safetensors_bytes(header_of("\"F64\"", "[2]", "[0,16]"), 16));
  EXPECT_FALSE(h.tensors[0].dtype.has_value());
  EXPECT_EQ(h.tensors[0].dtype_name, "F64");
  expect_corrupt(header_of("\"F4\"", "[3]", "[0,1]"), 1, "whole number of bytes");
}

TEST(SafetensorsHeader, RefusesEveryTruncation) {
  const std::string whole = safetensors_bytes(header_of("\"F32\"", "[2,2]", "[0,16]"), 16);
  EXPECT_EQ(parse(whole).tensors.size(), 1u);
  for (size_t size = 0; size < whole.size(); ++size) {
    SCOPED_TRACE(size);
    expect_error(
        ErrorKind::kCorrupt, [&] { parse(whole.substr(0, size)); }, "crafted.safetensors");
  }
  expect_error(
      ErrorKind::kCorrupt, [&] { parse(whole + "x"); }, "describes 16 bytes of data, the file holds 17");
}

TEST(SafetensorsHeader, RefusesLyingLength) {
  for (const uint64_t length : {uint64_t{100'000'001}, ~uint64_t{0}, ~uint64_t{0} - 7, uint64_t{1} << 63}) {
    std::string bytes = safetensors_bytes("{}", 0);
    std::memcpy(bytes.data(), &length, 8);
    expect_error(
        ErrorKind::kCorrupt, [&] { parse(bytes); }, "the format allows");
  }
  std::string bytes = safetensors_bytes("{}", 0);
  bytes[0] = 3;
  expect_error(
      ErrorKind::kCorrupt, [&] { parse(bytes); }, "claims 3 bytes, the file has 2");
  // A file size that the bytes at hand do not back up.
  bytes[0] = 100;
  expect_error(
      ErrorKind::kCorrupt, [&] { parse(bytes, 1 << 20); }, "claims 100 bytes");
}

TEST(SafetensorsHeader, RefusesWhatIsNotAHeader) {
  expect_corrupt("", 0, "does not begin with");
  expect_corrupt("[]", 0, "does not begin with");
  expect_corrupt(" {}", 0, "does not begin with");
  expect_corrupt("{\"w\":", 0, "not valid JSON");
  expect_corrupt("{} x", 0, "not valid JSON");
  expect_corrupt("{\"\xff\":1}", 0, "not valid JSON");
  expect_corrupt(R"({"w":3})", 0, "\"w\"", "expected an object");
  expect_corrupt(R"({"w":{"shape":[],"data_offsets":[0,4]}})", 4, "\"w\"", "no \"dtype\"");
  expect_corrupt(R"({"w":{"dtype":"F32","data_offsets":[0,4]}})", 4, "no \"shape\"");
  expect_corrupt(R"({"w":{"dtype":"F32","shape":[]}})", 4, "no \"data_offsets\"");
  expect_corrupt(R"({"__metadata__":{"a":1}})", 0, "not a string");
  expect_corrupt(R"({"__metadata__":[]})", 0, "not an object");
  expect_corrupt("{\"w\":" + std::string(100'000, '['), 0, "not valid JSON");
}

TEST(SafetensorsHeader, RefusesWrongFields) {
  expect_corrupt(header_of("\"F33\"", "[1]", "[0,4]"), 4, "\"w\"", "\"F33\"");
  expect_corrupt(header_of("7", "[1]", "[0,4]"), 4, "dtype is 7");
  expect_corrupt(header_of("\"F32\"", "[-1]", "[0,4]"), 4, "non-negative");
  expect_corrupt(header_of("\"F32\"", "[1.0]", "[0,4]"), 4, "non-negative");
  expect_corrupt(header_of("\"F32\"", "{}", "[0,4]"), 4, "expected a list");
  expect_corrupt(header_of("\"F32\"", "[18446744073709551615]", "[0,4]"), 4, "too large");
  expect_corrupt(header_of("\"F32\"", "[1]", "[0]"), 4, "expected [begin, end]");
  expect_corrupt(header_of("\"F32\"", "[1]", "[0,4,8]"), 4, "expected [begin, end]");
  expect_corrupt(header_of("\"F32\"", "[1]", "[4,0]"), 4, "run backwards");
  expect_corrupt(header_of("\"F32\"", "[2]", "[0,8]"), 4, "beyond the file's 4 bytes");
  expect_corrupt(header_of("\"F32\"", "[1]", "[18446744073709551612,18446744073709551615]"), 4, "beyond");
}

TEST(SafetensorsHeader, RefusesSizesThatDisagree) {
  expect_corrupt(header_of("\"F32\"", "[2,3]", "[0,20]"), 20, "\"w\"", "F32 × [2, 3] needs 24 bytes",
                 "hold 20");
  // 2^32 · 2^32 wraps to 0, and 2^62 · 4 bytes wraps too.
  expect_corrupt(header_of("\"F32\"", "[4294967296,4294967296]", "[0,0]"), 0, "overflows");
  expect_corrupt(header_of("\"F32\"", "[4611686018427387904]", "[0,0]"), 0, "overflows");
}

TEST(SafetensorsHeader, RefusesOverlapsHolesAndDuplicates) {
  const auto two = [](const std::string& second, const std::string& begin, const std::string& end) {
    return R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},")" + second +
           R"(":{"dtype":"F32","shape":[1],"data_offsets":[)" + begin + "," + end + "]}}";
  };
  EXPECT_EQ(parse(safetensors_bytes(two("b", "8", "12"), 12)).tensors.size(), 2u);
  expect_corrupt(two("b", "4", "8"), 8, "\"a\" and \"b\" overlap");
  expect_corrupt(two("b", "12", "16"), 16, "4 bytes before tensor \"b\"");
  expect_corrupt(two("a", "8", "12"), 12, "\"a\" appears twice");
  expect_corrupt(R"({"a":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}})", 0,
                 "\"dtype\" appears twice");
}

TEST(SafetensorsFile, NamesTheFileThatCannotBeOpened) {
  const TempDir dir;
  expect_error(
      ErrorKind::kNotFound, [&] { SafetensorsFile::open(dir.file("none.safetensors")); }, "none.safetensors",
      "No such file");
  expect_error(
      ErrorKind::kCorrupt, [&] { SafetensorsFile::open(dir.path()); }, "not a regular file");
  const std::string empty = dir.write("empty.safetensors", "");
  expect_error(
      ErrorKind::kCorrupt, [&] { SafetensorsFile::open(empty); }, "empty");
}

TEST(SafetensorsFile, ReadsAFixtureThatTheReferenceImplementationWrote) {
  const std::string path = std::string(DUET_FIXTURES) + "/golden/v3-tiny/golden_logits.safetensors";
  SafetensorsFile opened = SafetensorsFile::open(path);
  const SafetensorsFile file = std::move(opened);
  const SafetensorsEntry* logits = file.find("logits.0");
  ASSERT_NE(logits, nullptr);
  EXPECT_EQ(logits->dtype, DType::kF32);
  ASSERT_EQ(logits->shape.size(), 2u);
  EXPECT_EQ(logits->shape[1], 256);
  float first = 0;
  std::memcpy(&first, file.data(*logits), sizeof first);
  EXPECT_TRUE(first == first && first > -100 && first < 100);
  EXPECT_EQ(file.find("logits.none"), nullptr);
}

TEST(SafetensorsWriter, RoundTripsInPiecesAndAnyOrder) {
  const TempDir dir;
  const std::string path = dir.file("out.safetensors");
  std::vector<float> logits(6 * 5);
  std::iota(logits.begin(), logits.end(), 0.5f);
  const std::vector<int8_t> bytes = {1, -2, 3};
  const std::vector<uint16_t> halves = {7, 8};
  const std::string odd_name = "odd \"name\" \\ ü";
  {
    SafetensorsWriter writer(path,
                             {{"bytes", DType::kI8, {3}},
                              {"logits.0", DType::kF32, {6, 5}},
                              {odd_name, DType::kBf16, {2}},
                              {"none", DType::kF32, {0, 5}}},
                             {{"made by", "test"}});
    writer.write(1, 10, logits.data() + 10, 20);
    writer.write(0, 0, bytes.data(), 3);
    EXPECT_FALSE(std::filesystem::exists(path)) << "the name appears only when the file is whole";
    writer.write(1, 0, logits.data(), 10);
    writer.write(2, 0, halves.data(), 2);
    writer.finish();
  }
  const SafetensorsFile file = SafetensorsFile::open(path);
  ASSERT_EQ(file.header().tensors.size(), 4u);
  EXPECT_EQ(file.header().metadata.at(0).second, "test");
  EXPECT_EQ(file.find("logits.0")->shape, (std::vector<int64_t>{6, 5}));
  const std::byte* data = file.data(*file.find("logits.0"));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 4, 0u) << "wider tensors are aligned beside int8 ones";
  EXPECT_EQ(std::memcmp(data, logits.data(), logits.size() * 4), 0);
  EXPECT_EQ(std::memcmp(file.data(*file.find("bytes")), bytes.data(), 3), 0);
  EXPECT_EQ(std::memcmp(file.data(*file.find(odd_name)), halves.data(), 4), 0);
  EXPECT_EQ(file.find("none")->begin, file.find("none")->end);
}

TEST(SafetensorsWriter, AnEmptyListIsAValidFile) {
  const TempDir dir;
  write_safetensors(dir.file("empty.safetensors"), {});
  EXPECT_TRUE(SafetensorsFile::open(dir.file("empty.safetensors")).header().tensors.empty());
}

TEST(SafetensorsWriter, UnfinishedFilesLeaveNothingBehind) {
  const TempDir dir;
  const std::string path = dir.write("out.safetensors", "the old file");
  const float value = 1;
  {
    SafetensorsWriter writer(path, {{"a", DType::kF32, {2}}});
    writer.write(0, 0, &value, 1);
    expect_error(
        ErrorKind::kInternal, [&] { writer.finish(); }, "\"a\" got 1 of its 2 elements");
  }
  const std::filesystem::directory_iterator entries(dir.path());
  EXPECT_EQ(std::distance(begin(entries), end(entries)), 1);
  EXPECT_EQ(std::filesystem::file_size(path), 12u);
}

TEST(SafetensorsWriter, RefusesBadDeclarationsAndPaths) {
  const TempDir dir;
  const auto open = [&](std::vector<SafetensorsDecl> decls) {
    return [&dir, decls] { SafetensorsWriter(dir.file("x"), decls); };
  };
  expect_error(ErrorKind::kInvalidArgument, open({{"a", DType::kF32, {1}}, {"a", DType::kF32, {1}}}),
               "twice");
  expect_error(ErrorKind::kInvalidArgument, open({{"__metadata__", DType::kF32, {1}}}), "reserved");
  expect_error(ErrorKind::kInvalidArgument, open({{"a", DType::kF32, {-1}}}), "impossible shape [-1]");
  expect_error(ErrorKind::kInvalidArgument, open({{"a", DType::kF32, {int64_t{1} << 40, int64_t{1} << 40}}}),
               "impossible shape");
  expect_error(ErrorKind::kInvalidArgument, open({{"\xff", DType::kF32, {1}}}), "UTF-8");
  expect_error(
      ErrorKind::kInvalidArgument, [&] { SafetensorsWriter(dir.file("no/dir/x"), {}); }, "no/dir/x",
      "cannot create", "No such file");
}

TEST(SafetensorsWriter, AFullDiskIsAnErrorThatSaysHowMuchWasNeeded) {
  const TempDir dir;
  // A file-size limit stands in for a full disk: both fail in the same system calls.
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit{};
  getrlimit(RLIMIT_FSIZE, &old_limit);
  rlimit limit = old_limit;
  limit.rlim_cur = 64 << 10;
  setrlimit(RLIMIT_FSIZE, &limit);
  const Caught error = caught([&] { SafetensorsWriter(dir.file("big"), {{"a", DType::kF32, {1 << 20}}}); });
  setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(error.kind, ErrorKind::kResourceExhausted) << error.text;
  EXPECT_THAT(error.text, ::testing::HasSubstr("4194"));
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

}  // namespace
}  // namespace duet
