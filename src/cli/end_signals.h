// The signals that end a server, blocked before any thread is there so that only wait() gets them.
#pragma once

#include <pthread.h>
#include <signal.h>
#include <time.h>

namespace duet {

class EndSignals {
 public:
  EndSignals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set_, &before_);
  }
  ~EndSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  /// 0: none came meanwhile.
  int wait(int milliseconds) const {
    const timespec time{milliseconds / 1000, (milliseconds % 1000) * 1'000'000L};
    const int signal = sigtimedwait(&set_, nullptr, &time);
    return signal > 0 ? signal : 0;
  }

 private:
  sigset_t set_, before_;
};

}  // namespace duet
