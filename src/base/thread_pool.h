// A fixed set of threads that share one rank's compute lane. The caller takes part, so a pool of
// one thread costs nothing. Items are handed out dynamically; results must not depend on which
// thread ran an item.
#pragma once

#include <functional>
#include <memory>
#include <vector>

namespace duet {

class ThreadPool {
 public:
  /// `threads` counts the caller: 1 starts no thread. `cores` (may be empty) pins worker i to
  /// cores[(i - 1) % cores.size()], i = 1 … threads-1; the caller pins itself. Threads with cores look
  /// for work for some 100 µs before they sleep; without, they sleep at once.
  explicit ThreadPool(int threads, std::vector<int> cores = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  /// Runs body(item, thread) for item in [0, items), thread in [0, threads()); returns when all
  /// are done. The first exception thrown by a body is rethrown here. Not reentrant.
  void parallel_for(int items, const std::function<void(int item, int thread)>& body);

 private:
  struct State;
  int threads_;
  std::unique_ptr<State> state_;
};

}  // namespace duet
