// Every operation in the shapes that benchmarks run, small, against its oracle.
#include <gtest/gtest.h>

#include "opcases/op_case.h"

namespace duet {
namespace {

std::string test_name(const std::string& text) {
  std::string name;
  for (const char c : text) name += std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
}

class OpCases : public testing::TestWithParam<OpCaseSpec> {};

TEST_P(OpCases, MatchTheirOracleAtEveryLevel) {
  for (const CpuLevel level : available_cpu_levels()) {
    for (const int threads : {1, 2}) {
      const std::unique_ptr<OpCase> op = GetParam().make(CaseSize::kSmall);
      ThreadPool pool(threads);
      Arena arena(op->scratch_bytes(threads));
      const KernelContext cx{level, &pool, &arena, GetParam().rounding};
      for (int run = 0; run < 2; ++run) EXPECT_LE(op->error(cx), 1.0) << to_string(level);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, OpCases, testing::ValuesIn(op_cases()),
                         [](const auto& i) { return test_name(i.param.name()); });

TEST(Limits, AreOfTheSizeOfAProcessor) {
  const AlignedBuffer buffer(size_t{8} << 20);
  ThreadPool one(1);
  for (const CpuLevel level : available_cpu_levels()) {
    const double floats = multiply_rate(level, Units::kFloat, one);
    EXPECT_GT(floats, 0.1) << to_string(level);
    EXPECT_LT(floats, 2000) << to_string(level);
    EXPECT_GT(multiply_rate(level, Units::kInt8, one), 0.5 * floats) << to_string(level);
  }
  EXPECT_GT(read_rate(buffer, one), 0.05);
}

}  // namespace
}  // namespace duet
