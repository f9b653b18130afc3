#include "exec/comm_lane.h"

#include <sys/prctl.h>

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "base/cpu.h"

namespace duet {

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
  std::mutex mutex;
  std::condition_variable finished;
  bool done = false;
  std::exception_ptr error;
  post([&] {
    try {
      work();
    } catch (...) {
      error = std::current_exception();
    }
    std::lock_guard lock(mutex);
    done = true;
    finished.notify_one();
  });
  std::unique_lock lock(mutex);
  finished.wait(lock, [&] { return done; });
  if (error) std::rethrow_exception(error);
}

}  // namespace duet
