// CommLane: the thread that does all of one rank's communication, in the order given. Under MPI it
// is the only thread that calls MPI, so transports are made and closed here too.
#pragma once

#include <functional>
#include <memory>
#include <vector>

namespace duet {

class CommLane {
 public:
  /// `cores`: where the thread may run; empty leaves it to the system.
  explicit CommLane(std::vector<int> cores = {});
  ~CommLane();
  CommLane(const CommLane&) = delete;
  CommLane& operator=(const CommLane&) = delete;

  /// Queues work; what it throws is lost, so it must not throw.
  void post(std::function<void()> work);
  /// Runs work on the lane and waits; rethrows what it throws.
  void call(const std::function<void()>& work);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace duet
