#include "base/call_through.h"

#include <condition_variable>
#include <exception>
#include <mutex>

namespace duet {

void call_through(const std::function<void(std::function<void()>)>& post, const std::function<void()>& work) {
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
    // Notified under the lock: the caller's frame holds all this, and goes once it has seen `done`.
    std::lock_guard lock(mutex);
    done = true;
    finished.notify_one();
  });
  std::unique_lock lock(mutex);
  finished.wait(lock, [&] { return done; });
  if (error) std::rethrow_exception(error);
}

}  // namespace duet
