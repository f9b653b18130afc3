#include "base/thread_pool.h"

#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

#include "base/cpu.h"
#include "base/error.h"

namespace duet {
namespace {

// How long a thread that has a core to itself looks before it sleeps. Going to sleep and being woken
// costs tens of microseconds, as much as a small matrix product; the gaps inside a step are shorter
// than this, those between requests longer.
constexpr int kLooks = 2000;  // about 50 µs of pauses
constexpr int kYields = 200;  // then as much again, in which another thread may have the core

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Returns once `value` is no longer `seen`.
template <typename T>
void wait_for_change(const std::atomic<T>& value, T seen, bool own_core) {
  for (int i = 0; own_core && i < kLooks + kYields; ++i) {
    if (value.load(std::memory_order_acquire) != seen) return;
    if (i < kLooks) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
  value.wait(seen, std::memory_order_acquire);
}

}  // namespace

// A call publishes its items by storing their number in `unclaimed`; whoever lowers it by one owns an
// item, and while an owned item is unfinished the call can't return. So a worker that comes late finds
// nothing to claim, and nobody waits for it.
struct ThreadPool::State {
  bool own_cores = false;
  const std::function<void(int, int)>* body = nullptr;
  int items = 0;
  std::mutex mutex;
  std::exception_ptr error;
  std::atomic<bool> stop{false};
  alignas(64) std::atomic<int> unclaimed{0};
  alignas(64) std::atomic<int> finished{0};
  alignas(64) std::atomic<uint32_t> calls{0};
  std::vector<std::jthread> workers;

  void work(int thread) {
    int done = 0;
    for (int left = unclaimed.load(std::memory_order_acquire); left > 0;) {
      // That this may belong to a later call than `left` did does no harm: it says which item it is.
      if (!unclaimed.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel)) continue;
      // body and items are those of the call that the item belongs to, which waits for it.
      try {
        (*body)(items - left, thread);
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
      }
      ++done;
      left = unclaimed.load(std::memory_order_acquire);
    }
    if (done == 0) return;
    finished.fetch_add(done, std::memory_order_acq_rel);
    finished.notify_one();
  }

  void loop(int thread) {
    while (true) {
      const uint32_t seen = calls.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_acquire)) return;
      work(thread);
      wait_for_change(calls, seen, own_cores);
    }
  }

  void announce() {
    calls.fetch_add(1, std::memory_order_acq_rel);
    calls.notify_all();
  }
};

ThreadPool::ThreadPool(int threads, std::vector<int> cores)
    : threads_(threads), state_(std::make_unique<State>()) {
  DUET_CHECK(threads >= 1);
  state_->own_cores = !cores.empty();
  for (int i = 1; i < threads; ++i) {
    const int core = cores.empty() ? -1 : cores[static_cast<size_t>(i - 1) % cores.size()];
    state_->workers.emplace_back([this, i, core] {
      if (core >= 0) pin_this_thread(core);
      state_->loop(i);
    });
  }
}

ThreadPool::~ThreadPool() {
  state_->stop = true;
  state_->announce();
}

void ThreadPool::parallel_for(int items, const std::function<void(int, int)>& body) {
  if (items <= 0) return;
  if (threads_ == 1 || items == 1) {
    for (int item = 0; item < items; ++item) body(item, 0);
    return;
  }
  state_->body = &body;
  state_->items = items;
  state_->error = nullptr;
  state_->finished.store(0, std::memory_order_relaxed);
  state_->unclaimed.store(items, std::memory_order_release);
  state_->announce();
  state_->work(0);
  for (int seen = state_->finished.load(std::memory_order_acquire); seen < items;
       seen = state_->finished.load(std::memory_order_acquire)) {
    wait_for_change(state_->finished, seen, state_->own_cores);
  }
  if (state_->error) std::rethrow_exception(state_->error);
}

}  // namespace duet
