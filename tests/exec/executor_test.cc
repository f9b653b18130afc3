#include "exec/cpu_executor.h"

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>

#include "base/error.h"
#include "overlap/schedule.h"

namespace duet {
namespace {

// Micro-batches of produce → reduce* → consume; bodies append to a log.
Recording chain(int micro_batches, int layers, const std::function<void(int)>& body) {
  Stages stages;
  int next = 0;
  for (int m = 0; m < micro_batches; ++m) {
    stages.begin_micro_batch(m);
    for (int l = 0; l < layers; ++l) {
      stages.begin_layer(l);
      const int a = next++, b = next++, c = next++;
      stages.compute("produce", {stages.buffer("x")}, {stages.buffer("y")}, [=] { body(a); });
      stages.collective("reduce", {stages.buffer("y")}, {stages.buffer("z")}, [=] { body(b); });
      stages.compute("consume", {stages.buffer("z")}, {stages.buffer("x")}, [=] { body(c); });
    }
  }
  return stages.take();
}

TEST(CpuExecutor, RunsEveryStageOnceAfterItsDependencies) {
  CommLane comm;
  for (int m = 1; m <= 3; ++m) {
    std::mutex mutex;
    std::vector<int> log;
    const Recording r = chain(m, 4, [&](int s) {
      std::lock_guard lock(mutex);
      log.push_back(s);
    });
    for (const Program& p : {sequential_program(r), overlapped_program(r)}) {
      const LanePlan plan(p);
      const auto needs = derive_dependencies(p.stages, p.buffers.size());
      for (int repeat = 0; repeat < 50; ++repeat) {  // the same plan again: no state survives a run
        log.clear();
        std::vector<StageTime> times(p.stages.size());
        if (repeat % 2) {
          run_alone(plan, r.bodies, times, {});
        } else {
          run_program(plan, r.bodies, comm, times, {});
        }
        ASSERT_EQ(log.size(), p.stages.size());
        std::vector<size_t> place(log.size());
        for (size_t i = 0; i < log.size(); ++i) place[static_cast<size_t>(log[i])] = i;
        for (size_t s = 0; s < needs.size(); ++s) {
          for (int d : needs[s]) ASSERT_LT(place[static_cast<size_t>(d)], place[s]);
        }
      }
    }
  }
}

TEST(CpuExecutor, AThrowAtAnyStageEndsTheRunAndTheNextRunWorks) {
  CommLane comm;
  const int total = 2 * 3 * 3;
  int bad = -1;
  const Recording r = chain(2, 3, [&](int s) {
    if (s == bad) throw Error(ErrorKind::kInternal, "stage " + std::to_string(s));
  });
  const LanePlan plan(overlapped_program(r));
  std::vector<StageTime> times(r.stages.size());
  for (bad = 0; bad < total; ++bad) {
    int failures = 0;
    try {
      run_program(plan, r.bodies, comm, times, [&] { ++failures; });
      FAIL() << "no error from stage " << bad;
    } catch (const Error& e) {
      EXPECT_EQ(std::string(e.what()), "stage " + std::to_string(bad));
    }
    EXPECT_EQ(failures, 1);
  }
  run_program(plan, r.bodies, comm, times, {});
}

TEST(CpuExecutor, AThrowOfALoneRankEndsTheRunAndTheNextRunWorks) {
  const int total = 2 * 3 * 3;
  int bad = -1, ran = 0;
  const Recording r = chain(2, 3, [&](int s) {
    if (s == bad) throw Error(ErrorKind::kInternal, "stage " + std::to_string(s));
    ++ran;
  });
  const LanePlan plan(overlapped_program(r));
  std::vector<StageTime> times(r.stages.size());
  for (bad = 0; bad < total; ++bad) {
    int failures = 0;
    EXPECT_THROW(run_alone(plan, r.bodies, times, [&] { ++failures; }), Error);
    EXPECT_EQ(failures, 1);
  }
  ran = 0;
  run_alone(plan, r.bodies, times, {});
  EXPECT_EQ(ran, total);
}

TEST(CpuExecutor, TheOtherMicroBatchComputesWhileOneCommunicates) {
  // Deterministic proof of overlap: A's collective ends only once B has computed.
  CommLane comm;
  std::mutex mutex;
  std::condition_variable changed;
  bool computed = false;
  Stages stages;
  for (int m = 0; m < 2; ++m) {
    stages.begin_micro_batch(m);
    stages.compute("produce", {}, {stages.buffer("y")}, [&, m] {
      std::lock_guard lock(mutex);
      if (m == 1) computed = true;
      changed.notify_all();
    });
    stages.collective("reduce", {stages.buffer("y")}, {stages.buffer("z")}, [&, m] {
      std::unique_lock lock(mutex);
      if (m == 0 && !changed.wait_for(lock, std::chrono::seconds(20), [&] { return computed; })) {
        throw Error(ErrorKind::kInternal, "nothing was computed under the collective");
      }
    });
  }
  const Recording r = stages.take();
  std::vector<StageTime> times(r.stages.size());
  run_program(LanePlan(overlapped_program(r)), r.bodies, comm, times, {});
  EXPECT_TRUE(computed);
}

// In the order of the lane A's consume comes before B's produce, without which A's collective does not end.
TEST(CpuExecutor, ALaneThatRunsAheadPassesAStageThatWaits) {
  CommLane comm;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::string> ran;
  const auto note = [&](const char* what) {
    std::lock_guard lock(mutex);
    ran.push_back(what);
    changed.notify_all();
  };
  Stages stages;
  stages.begin_micro_batch(0);
  stages.compute("produce", {}, {stages.buffer("y")}, [&] { note("A produce"); });
  stages.collective("reduce", {stages.buffer("y")}, {stages.buffer("z")}, [&] {
    std::unique_lock lock(mutex);
    if (!changed.wait_for(lock, std::chrono::seconds(20), [&] { return ran.back() == "B produce"; }))
      throw Error(ErrorKind::kInternal, "the lane waited instead of running ahead");
  });
  stages.compute("consume", {stages.buffer("z")}, {stages.buffer("x")}, [&] { note("A consume"); });
  stages.begin_micro_batch(1);
  stages.compute("produce", {}, {stages.buffer("y")}, [&] { note("B produce"); });
  const Recording r = stages.take();
  Program program = program_in_order(r, {0, 1, 2, 3}, derive_dependencies(r.stages, r.buffers.size()));
  ASSERT_TRUE(program.runs_ahead);
  std::vector<StageTime> times(r.stages.size());
  run_program(LanePlan(program), r.bodies, comm, times, {});
  EXPECT_EQ(ran, (std::vector<std::string>{"A produce", "B produce", "A consume"}));
  EXPECT_GT(times[2].start_ns, times[3].end_ns);
  // Strictly in order, where that can be: nothing passes.
  program.runs_ahead = false;
  const LanePlan strict(program);
  ran.clear();
  std::vector<StageBody> bodies = r.bodies;
  bodies[1] = [] {};
  run_alone(strict, bodies, times, {});
  EXPECT_EQ(ran, (std::vector<std::string>{"A produce", "A consume", "B produce"}));
}

TEST(CommLane, CallRethrowsAndKeepsOrder) {
  CommLane lane;
  std::vector<int> log;
  for (int i = 0; i < 10; ++i) lane.post([&log, i] { log.push_back(i); });
  EXPECT_THROW(lane.call([] { throw Error(ErrorKind::kPeer, "gone"); }), Error);
  lane.call([&] { log.push_back(10); });
  ASSERT_EQ(log.size(), 11u);
  for (int i = 0; i <= 10; ++i) EXPECT_EQ(log[static_cast<size_t>(i)], i);
}

}  // namespace
}  // namespace duet
