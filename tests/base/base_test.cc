#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "base/cpu.h"
#include "base/error.h"
#include "base/thread_pool.h"

namespace duet {
namespace {

TEST(ThreadPool, RunsEveryItemOnceAtEveryThreadCount) {
  for (int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    for (int items : {0, 1, 2, 7, 100}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(items));
      pool.parallel_for(items, [&](int item, int thread) {
        ASSERT_LT(thread, threads);
        ++seen[static_cast<size_t>(item)];
      });
      for (auto& count : seen) EXPECT_EQ(count, 1);
    }
  }
}

TEST(ThreadPool, WorkersThatSleptOrCameLateMissNoItem) {
  for (const std::vector<int>& cores : {std::vector<int>{}, available_cores()}) {
    ThreadPool pool(3, cores);
    int64_t sum = 0;
    for (int call = 0; call < 2000; ++call) {  // calls shorter than a wake-up follow each other at once
      std::atomic<int> of_call{0};
      const int items = 2 + call % 5;
      pool.parallel_for(items, [&](int item, int) { of_call += item + 1; });
      ASSERT_EQ(of_call, items * (items + 1) / 2);
      sum += of_call;
      if (call % 500 == 499) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    EXPECT_EQ(sum, 2000 / 5 * (3 + 6 + 10 + 15 + 21));
  }
}

TEST(ThreadPool, RethrowsAndStaysUsable) {
  ThreadPool pool(2);
  EXPECT_THROW(pool.parallel_for(8,
                                 [](int item, int) {
                                   if (item == 3) throw Error(ErrorKind::kInternal, "item 3");
                                 }),
               Error);
  std::atomic<int> sum{0};
  pool.parallel_for(10, [&](int item, int) { sum += item; });
  EXPECT_EQ(sum, 45);
}

TEST(Cpu, LevelNamesRoundTrip) {
  for (CpuLevel level : available_cpu_levels()) EXPECT_EQ(parse_cpu_level(to_string(level)), level);
  EXPECT_THROW(parse_cpu_level("sse9"), Error);
}

}  // namespace
}  // namespace duet
