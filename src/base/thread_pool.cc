#include "base/thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "base/cpu.h"
#include "base/error.h"

namespace duet {

struct ThreadPool::State {
  std::mutex mutex;
  std::condition_variable wake, done;
  const std::function<void(int, int)>* body = nullptr;
  uint64_t generation = 0;
  int running = 0;
  bool stop = false;
  std::atomic<int> next{0};
  int items = 0;
  std::exception_ptr error;
  std::vector<std::jthread> workers;

  void work(int thread) {
    for (int item = next.fetch_add(1); item < items; item = next.fetch_add(1)) {
      try {
        (*body)(item, thread);
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
      }
    }
  }

  void loop(int thread) {
    uint64_t seen = 0;
    while (true) {
      {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return stop || generation != seen; });
        if (stop) return;
        seen = generation;
      }
      work(thread);
      std::lock_guard lock(mutex);
      if (--running == 0) done.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int threads, std::vector<int> cores)
    : threads_(threads), state_(std::make_unique<State>()) {
  DUET_CHECK(threads >= 1);
  for (int i = 1; i < threads; ++i) {
    const int core = cores.empty() ? -1 : cores[static_cast<size_t>(i) % cores.size()];
    state_->workers.emplace_back([this, i, core] {
      if (core >= 0) pin_this_thread(core);
      state_->loop(i);
    });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->wake.notify_all();
}

void ThreadPool::parallel_for(int items, const std::function<void(int, int)>& body) {
  if (items <= 0) return;
  if (threads_ == 1 || items == 1) {
    for (int item = 0; item < items; ++item) body(item, 0);
    return;
  }
  {
    std::lock_guard lock(state_->mutex);
    state_->body = &body;
    state_->items = items;
    state_->next = 0;
    state_->running = threads_ - 1;
    state_->error = nullptr;
    ++state_->generation;
  }
  state_->wake.notify_all();
  state_->work(0);
  std::unique_lock lock(state_->mutex);
  state_->done.wait(lock, [&] { return state_->running == 0; });
  if (state_->error) std::rethrow_exception(state_->error);
}

}  // namespace duet
