#include "exec/comm_lane.h"

#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "base/call_through.h"
#include "base/cpu.h"

namespace duet {

namespace {

// The lane wakes up between sleeps on a core that computes, and what it then does takes microseconds; a
// scheduler that lets the other thread finish its slice of milliseconds first stretches every collective.
// A short slice of its own makes Linux 6.12 and later put the lane in front (any user may ask for it); a
// better nice value does so on any kernel, where the process is allowed it. A refusal changes only speed.
// Measured with the demonstration's model, three micro-batches on the all-to-all path: hidden fraction
// 0.74 without, 0.85 with (medians of three, Zen 4, one core per rank).
void ask_for_the_core_at_once() {
  struct Attributes {  // struct sched_attr, which libc does not declare
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
  };
  constexpr uint64_t kSliceNs = 100'000;  // the shortest that the kernel takes
  const id_t thread = static_cast<id_t>(gettid());
  int nice = getpriority(PRIO_PROCESS, thread);
  if (setpriority(PRIO_PROCESS, thread, nice - 10) == 0) nice -= 10;
  Attributes attributes{sizeof(Attributes), 0, 0, nice, 0, kSliceNs, 0, 0};
  syscall(SYS_sched_setattr, thread, &attributes, 0U);
}

}  // namespace

struct CommLane::State {
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<std::function<void()>> queue;
  bool stop = false;
  std::jthread thread;

  void loop(const std::vector<int>& cores) {
    if (!cores.empty()) pin_this_thread(cores);
    // Sleeps of a shaped link and of polite waiting are tens of microseconds; the default slack of
    // 50 µs would double them.
    prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
    ask_for_the_core_at_once();
    while (true) {
      std::function<void()> work;
      {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return stop || !queue.empty(); });
        if (queue.empty()) return;
        work = std::move(queue.front());
        queue.pop_front();
      }
      work();
    }
  }
};

CommLane::CommLane(std::vector<int> cores) : state_(std::make_unique<State>()) {
  state_->thread = std::jthread([state = state_.get(), cores = std::move(cores)] { state->loop(cores); });
}

CommLane::~CommLane() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->wake.notify_one();
}

void CommLane::post(std::function<void()> work) {
  {
    std::lock_guard lock(state_->mutex);
    state_->queue.push_back(std::move(work));
  }
  state_->wake.notify_one();
}

void CommLane::call(const std::function<void()>& work) {
  call_through([this](std::function<void()> item) { post(std::move(item)); }, work);
}

}  // namespace duet
