#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <thread>

#include "base/clock.h"
#include "base/error.h"
#include "comm/collective_cases.h"
#include "comm/communicator.h"
#include "comm/mpi_transport.h"
#include "comm/shaped_transport.h"
#include "comm/thread_group.h"

namespace duet {
namespace {

using ::testing::HasSubstr;

// ---- every collective against its oracle, ranks as threads --------------------------------------

using CaseParam = std::tuple<test::CollectiveCase, int, DType>;
class OnThreads : public ::testing::TestWithParam<CaseParam> {};

TEST_P(OnThreads, EqualsOracle) {
  const auto& [test_case, ranks, wire] = GetParam();
  run_ranks(ranks, wire, [&, run = test_case.run](int, Communicator& c) { run(c); });
}

INSTANTIATE_TEST_SUITE_P(Collectives, OnThreads,
                         ::testing::Combine(::testing::ValuesIn(test::collective_cases()),
                                            ::testing::Values(1, 2, 3, 4, 8),
                                            ::testing::Values(DType::kF32, DType::kBf16)),
                         [](const auto& p) {
                           return std::get<0>(p.param).name + "_" + std::to_string(std::get<1>(p.param)) +
                                  "ranks_" + to_string(std::get<2>(p.param));
                         });

TEST(Communicator, OneRankRoundsNothing) {
  run_ranks(1, DType::kBf16, [](int, Communicator& c) {
    std::vector<float> v{1.0f + 0x1p-20f};
    c.all_reduce(v, v);
    EXPECT_EQ(v[0], 1.0f + 0x1p-20f);
    EXPECT_EQ(c.stats().total().bytes_sent, 0);
  });
}

// 2^24 + 1 + 1 is 2^24 from the left and 2^24 + 2 from the right.
TEST(Communicator, SumsInRankOrder) {
  run_ranks(3, DType::kF32, [](int rank, Communicator& c) {
    std::vector<float> v(200, rank == 0 ? 0x1p24f : 1.0f);
    c.all_reduce(v, v);
    for (float x : v) ASSERT_EQ(x, 0x1p24f);
    std::vector<float> w(200, rank == 2 ? 0x1p24f : 1.0f);
    c.all_reduce(w, w);
    for (float x : w) ASSERT_EQ(x, 0x1p24f + 2);
  });
}

TEST(Communicator, NegativeZeroAndInfinitySurvive) {
  run_ranks(2, DType::kBf16, [](int, Communicator& c) {
    std::vector<float> v{-0.0f, INFINITY};
    c.all_reduce(v, v);
    EXPECT_TRUE(std::signbit(v[0]) && v[0] == 0);  // a sum that starts from +0 would lose the sign
    EXPECT_EQ(v[1], INFINITY);
  });
}

TEST(Communicator, WireTypesByName) {
  EXPECT_EQ(parse_wire_dtype("bf16"), DType::kBf16);
  EXPECT_EQ(parse_wire_dtype("float32"), DType::kF32);
  for (const char* name : {"int8", "fp8", ""}) EXPECT_THROW(parse_wire_dtype(name), Error) << name;
  try {
    parse_wire_dtype("int8");
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kUnsupported);
    EXPECT_THAT(e.what(), HasSubstr("int8"));
  }
  EXPECT_THROW(Communicator(std::move(ThreadGroup::create(1)[0]), DType::kI8), Error);
  EXPECT_THROW(ThreadGroup::create(0), Error);
}

TEST(Communicator, StagingIsBoundedByThePiece) {
  const int64_t small = Communicator::staging_bytes(2, DType::kBf16, 1 << 20);
  const int64_t large = Communicator::staging_bytes(2, DType::kBf16, int64_t{1} << 40);
  EXPECT_GT(large, small);
  EXPECT_LT(large, 16 << 20);
  EXPECT_EQ(Communicator::staging_bytes(1, DType::kBf16, 1 << 20), 0);
}

// ---- failures: nobody hangs -----------------------------------------------------------------------

std::string failure(int ranks, const std::function<void(int, Communicator&)>& fn) {
  try {
    run_ranks(ranks, DType::kBf16, fn);
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kPeer);
    return e.what();
  }
  return "";
}

TEST(Failures, DifferentSizesAreNamed) {
  const std::string text = failure(3, [](int rank, Communicator& c) {
    std::vector<float> v(rank == 1 ? 5000 : 4000);
    c.all_reduce(v, v);
  });
  EXPECT_THAT(text, HasSubstr("all_reduce number 1 on rank"));
  EXPECT_THAT(text, HasSubstr("which expects"));
}

TEST(Failures, DifferentCollectivesAreNoticed) {
  const std::string text = failure(2, [](int rank, Communicator& c) {
    std::vector<std::byte> bytes(1000);
    std::vector<float> v(4000);
    if (rank == 0) {
      c.broadcast_bytes(bytes, 0);
    } else {
      c.all_reduce(v, v);
    }
  });
  EXPECT_THAT(text, HasSubstr("disagree"));
}

// A rank that sends to one that expects nothing.
TEST(Failures, UnexpectedMessageIsNoticed) {
  EXPECT_THAT(failure(4,
                      [](int rank, Communicator& c) {
                        std::vector<int32_t> out(4, 0);
                        std::vector<int32_t> in(4, 0);
                        if (rank == 1) out[3] = 1;
                        std::vector<float> data(4);
                        c.all_to_all_rows({data.data(), 1, 4}, out, {data.data(), 1, 4}, in);
                      }),
              HasSubstr("rank 1 sends 8 bytes to rank 3, which expects 0"));
}

// A sender whose rows are more than the receiver's row_offsets allow it.
TEST(Failures, ADispatchBeyondTheRoomForItIsNoticed) {
  const std::string text = failure(2, [](int rank, Communicator& c) {
    const std::vector<int64_t> offsets =
        rank == 0 ? std::vector<int64_t>{0, 5, 6} : std::vector<int64_t>{0, 2, 3};
    std::vector<int32_t> out(2, 0), in(2, 0);
    if (rank == 0) out[1] = 5;
    std::vector<float> rows(6 * 3), got(6 * 3);
    std::vector<std::byte> records(6 * 4), got_records(6 * 4);
    c.dispatch_rows({rows.data(), 6, 3}, records, out, {got.data(), 6, 3}, got_records, offsets, 4, in);
  });
  EXPECT_THAT(text, HasSubstr("which expects at most 20"));
}

void one_collective(int which, Communicator& c) {
  std::vector<float> v(256);
  const auto n = static_cast<size_t>(c.size());
  std::vector<int64_t> offsets(n + 1, 0);
  offsets.back() = 16;
  std::vector<int64_t> widths(n, 16);
  std::vector<int32_t> counts(n, 1);
  std::vector<int32_t> counts_in(n, 1);
  std::vector<int64_t> one_each(n + 1);
  std::iota(one_each.begin(), one_each.end(), int64_t{0});
  std::vector<std::byte> records(4 * n);
  std::vector<std::byte> records_in(4 * n);
  std::vector<std::byte> bytes(3 * n);
  std::vector<std::byte> bytes_in(3 * n);
  std::vector<double> costs(3);
  const int64_t own = c.rank() == c.size() - 1 ? 16 : 0;
  std::vector<float> mine(static_cast<size_t>(own) * 16);
  std::vector<float> all(256 * n);
  const ConstRows in{v.data(), 16, 16};
  switch (which) {
    case 0: c.all_reduce(v, v); return;
    case 1: c.all_reduce_add(v, std::span(all).first(256)); return;
    case 2: c.reduce_scatter_rows(in, offsets, {mine.data(), own, 16}, false); return;
    case 3: c.all_gather_rows(ConstRows{mine.data(), own, 16}, offsets, {all.data(), 16, 16}); return;
    case 4:
      c.dispatch_rows(in, records, counts, {all.data(), 16, 16}, records_in, one_each, 4, counts_in);
      return;
    case 5: c.all_to_all_rows(in, counts, {all.data(), 16, 16}, counts_in); return;
    case 6: c.gather_rows_f32(in, widths, {all.data(), 16, 16 * c.size()}, 0); return;
    case 7: c.broadcast(bytes, 0); return;
    case 8: c.broadcast_bytes(bytes, 1); return;
    case 9: c.all_gather_bytes({bytes.data(), 3}, bytes_in); return;
    case 10: c.all_reduce_max(costs); return;
    default: c.barrier(); return;
  }
}
constexpr int kCollectives = 12;

TEST(Failures, ThrowingRankWakesTheOthersInEveryCollective) {
  for (int which = 0; which < kCollectives; ++which) {
    std::atomic<int> woken{0};
    try {
      run_ranks(3, DType::kBf16, [&](int rank, Communicator& c) {
        if (rank == 1) {
          one_collective(which, c);
          throw std::runtime_error("disk on fire");
        }
        try {  // the abort may reach a rank as it leaves the first call
          one_collective(which, c);
          one_collective(which, c);
        } catch (const Error& e) {
          EXPECT_EQ(e.kind(), ErrorKind::kPeer);
          EXPECT_THAT(e.what(), HasSubstr("rank 1 failed: disk on fire"));
          ++woken;
          throw;
        }
      });
      ADD_FAILURE() << "collective " << which << " went on without rank 1";
    } catch (const std::runtime_error& e) {
      EXPECT_STREQ(e.what(), "disk on fire") << which;  // the cause, not the echo of it
    }
    EXPECT_EQ(woken, 2) << which;
  }
}

TEST(Failures, AbortFromOutsideWakesWaitingRanks) {
  auto transports = ThreadGroup::create(3);
  std::atomic<int> woken{0};
  {
    std::vector<std::jthread> threads;
    for (int r = 0; r < 2; ++r) {  // rank 2 never comes
      threads.emplace_back([&, r] {
        try {
          transports[static_cast<size_t>(r)]->barrier();
        } catch (const Error&) {
          ++woken;
        }
      });
    }
    transports[2]->abort("shutting down");
    transports[2]->abort("a later reason");
  }
  EXPECT_EQ(woken, 2);
  try {
    transports[2]->barrier();
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "shutting down");
  }
}

// Buffers of a rank that leaves because of an abort are freed at once; a peer must not be copying
// from them any more. ThreadSanitizer and AddressSanitizer are the judges.
TEST(Failures, AbortInTheMiddleOfLargeCopies) {
  for (int round = 0; round < 20; ++round) {
    try {
      run_ranks(4, DType::kF32, [&](int rank, Communicator& c) {
        for (int i = 0; i < 5; ++i) {
          std::vector<std::byte> own(static_cast<size_t>(1) << 18);
          std::vector<std::byte> all(own.size() * 4);
          if (rank == round % 4 && i == 3) throw std::runtime_error("now");
          if (rank == (round + 1) % 4 && i == 2 && round % 2 == 0) c.abort("outside");
          c.all_gather_bytes(own, all);
        }
      });
      ADD_FAILURE();
    } catch (const std::exception&) {
    }
  }
}

// ---- the shaped link ------------------------------------------------------------------------------

TEST(Shaped, TakesAtLeastTheModelledTime) {
  // 100 000 bytes each way at 10 MB/s: 10 ms, and 2 ms of latency, in one exchange.
  const auto wrap = [](std::unique_ptr<Transport> t) {
    return make_shaped_transport(std::move(t), {1e7, 2'000'000});
  };
  run_ranks(
      2, DType::kBf16,
      [](int, Communicator& c) {
        std::vector<std::byte> own(100'000);
        std::vector<std::byte> all(200'000);
        const int64_t start = now_ns();
        c.all_gather_bytes(own, all);
        EXPECT_GE(now_ns() - start, 12'000'000);
        EXPECT_STREQ(c.transport_name(), "shaped threads");
      },
      wrap);
}

TEST(Shaped, SilentRankIsNotDelayed) {
  // Ranks 0 and 1 talk for at least half a second; rank 2 has nothing to say and is gone before.
  const auto wrap = [](std::unique_ptr<Transport> t) {
    return make_shaped_transport(std::move(t), {1e3, 1000});
  };
  std::atomic<bool> talk_done{false};
  run_ranks(
      3, DType::kBf16,
      [&](int rank, Communicator& c) {
        std::vector<int32_t> counts(3, 0);
        if (rank < 2) counts[static_cast<size_t>(1 - rank)] = 250;
        std::vector<float> out(250);
        std::vector<float> in(250);
        c.all_to_all_rows({out.data(), 250, 1}, counts, {in.data(), 250, 1}, counts);
        if (rank == 2) {
          EXPECT_FALSE(talk_done);
        } else {
          talk_done = true;
        }
      },
      wrap);
}

TEST(Shaped, EveryCollectiveStaysExact) {
  const auto wrap = [](std::unique_ptr<Transport> t) {
    return make_shaped_transport(std::move(t), {1e12, 1});
  };
  for (const auto& test_case : test::collective_cases()) {
    run_ranks(
        3, DType::kBf16, [&](int, Communicator& c) { test_case.run(c); }, wrap);
  }
}

TEST(Shaped, Bandwidths) {
  EXPECT_DOUBLE_EQ(parse_bandwidth("1gbit"), 125e6);
  EXPECT_DOUBLE_EQ(parse_bandwidth("400mbit"), 50e6);
  EXPECT_DOUBLE_EQ(parse_bandwidth("10Gbps"), 1.25e9);
  EXPECT_DOUBLE_EQ(parse_bandwidth("10 Gbit/s"), 1.25e9);
  EXPECT_DOUBLE_EQ(parse_bandwidth("125MB/s"), 125e6);
  EXPECT_DOUBLE_EQ(parse_bandwidth("125MBps"), 125e6);
  EXPECT_DOUBLE_EQ(parse_bandwidth("1GiB/s"), 1073741824.0);
  EXPECT_DOUBLE_EQ(parse_bandwidth("2.5kbit"), 312.5);
  EXPECT_DOUBLE_EQ(parse_bandwidth("800bit"), 100);
  for (const char* text : {"", "fast", "0gbit", "-1gbit", "1", "1g", "1gbitx", "1xbit", "infgbit", "nan",
                           "0x10gbit", "1gbit 2", " 1gbit", "1e999gbit"}) {
    EXPECT_THROW(parse_bandwidth(text), Error) << text;
  }
}

TEST(Shaped, Durations) {
  EXPECT_EQ(parse_duration("50us"), 50'000);
  EXPECT_EQ(parse_duration("1ms"), 1'000'000);
  EXPECT_EQ(parse_duration("1.5ms"), 1'500'000);
  EXPECT_EQ(parse_duration("2s"), 2'000'000'000);
  EXPECT_EQ(parse_duration("800 ns"), 800);
  for (const char* text : {"", "0us", "-1us", "5", "5 hours", "us", "0.1ns", "1e300s", "0x1s"}) {
    EXPECT_THROW(parse_duration(text), Error) << text;
  }
  EXPECT_THROW(make_shaped_transport(std::move(ThreadGroup::create(1)[0]), LinkShape{0, 0}), Error);
  EXPECT_THROW(make_shaped_transport(std::move(ThreadGroup::create(1)[0]), LinkShape{1, -1}), Error);
}

// ---- MPI: what can be said without mpirun ---------------------------------------------------------

TEST(MpiEnvironment, IsReadWithoutCallingMpi) {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "PMIX_RANK"}) unsetenv(name);
  EXPECT_FALSE(launched_under_mpi());
  EXPECT_EQ(mpi_world_size_from_env(), 1);
  setenv("PMI_RANK", "0", 1);
  setenv("PMI_SIZE", "3", 1);
  EXPECT_TRUE(launched_under_mpi());
  EXPECT_EQ(mpi_world_size_from_env(), 3);
  unsetenv("PMI_RANK");
  unsetenv("PMI_SIZE");
  if (have_mpi()) {
    EXPECT_THAT(mpi_library(), ::testing::AnyOf(HasSubstr("Open MPI"), HasSubstr("MPICH")));
  } else {
    EXPECT_THROW(make_mpi_transport(), Error);
  }
}

}  // namespace
}  // namespace duet
