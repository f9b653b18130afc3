#include "sim/simulator.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "base/error.h"

namespace duet {

namespace {

// The lanes go on from event to event: the end of a stage frees its lane and whoever waited for it.
// Lane 0 computes, the others communicate.
class Clockwork {
 public:
  Clockwork(const Program& program, std::span<const double> cost, double stolen, CommLanes lanes,
            SimulatedRun& run)
      : program_(program),
        cost_(cost),
        slow_(1.0 - stolen),
        run_(run),
        done_(program.stages.size()),
        place_(program.stages.size()) {
    for (const auto& lane : program.order)
      for (size_t i = 0; i < lane.size(); ++i) place_[static_cast<size_t>(lane[i])] = i;
    const std::vector<std::vector<int>> queues = program.queues();
    lanes_.resize(2);
    for (size_t q = 1; q < queues.size(); ++q) lanes_[0].queues.push_back({queues[q], 0});
    for (int s : queues[Program::kCommQueue]) {
      const size_t apart = static_cast<size_t>(program.stages[static_cast<size_t>(s)].micro_batch);
      const size_t lane = lanes == CommLanes::kOne ? 1 : 1 + apart;
      if (lanes_.size() <= lane) lanes_.resize(lane + 1);
      if (lanes_[lane].queues.empty()) lanes_[lane].queues.resize(1);
      lanes_[lane].queues[0].order.push_back(s);
    }
  }

  void go() {
    start_ready();
    while (lanes_[0].running >= 0 || communicating_ > 0) {
      const double speed = communicating_ > 0 ? slow_ : 1.0;
      const double share = 1.0 / std::max(communicating_, 1);
      double step = std::numeric_limits<double>::infinity();
      for (size_t l = 0; l < lanes_.size(); ++l) {
        if (lanes_[l].running >= 0) step = std::min(step, lanes_[l].left / (l == 0 ? speed : share));
      }
      advance(step, speed, share);
      start_ready();
    }
    for (const State& lane : lanes_)
      for (const Queue& queue : lane.queues) DUET_CHECK(queue.next == queue.order.size());
    run_.makespan_ns = now_;
  }

 private:
  struct Queue {
    std::vector<int> order;
    size_t next = 0;
  };
  struct State {
    std::vector<Queue> queues;  // of which the first in the lane's order that can go goes
    int running = -1;
    double left = 0;
  };

  void advance(double step, double speed, double share) {
    now_ += step;
    if (lanes_[0].running < 0) run_.exposed_ns += step;
    for (size_t l = 0; l < lanes_.size(); ++l) {
      State& lane = lanes_[l];
      if (lane.running < 0) continue;
      lane.left -= step * (l == 0 ? speed : share);
      // What is due now ends now: a rounding error must not leave a sliver.
      if (lane.left > 1e-9 * cost_[static_cast<size_t>(lane.running)]) continue;
      done_[static_cast<size_t>(lane.running)] = true;
      lane.running = -1;
      communicating_ -= l > 0;
    }
  }

  void start_ready() {
    for (bool moved = true; moved;) {
      moved = false;
      for (size_t l = 0; l < lanes_.size(); ++l) {
        while (lanes_[l].running < 0 && try_start(l)) moved = true;
      }
    }
  }

  bool ready(size_t s) const {
    return std::all_of(program_.waits[s].begin(), program_.waits[s].end(),
                       [&](int w) { return done_[static_cast<size_t>(w)]; });
  }

  // A stage without cost is over at once, and may have been waited for.
  bool try_start(size_t l) {
    State& lane = lanes_[l];
    Queue* first = nullptr;
    size_t s = 0;
    for (Queue& queue : lane.queues) {
      if (queue.next == queue.order.size()) continue;
      const size_t head = static_cast<size_t>(queue.order[queue.next]);
      if ((first != nullptr && place_[head] > place_[s]) || !ready(head)) continue;
      first = &queue;
      s = head;
    }
    if (first == nullptr) return false;
    run_.start_ns[s] = now_;
    ++first->next;
    lane.left = cost_[s];
    if (cost_[s] > 0) {
      lane.running = static_cast<int>(s);
      communicating_ += l > 0;
    } else {
      done_[s] = true;
    }
    return true;
  }

  const Program& program_;
  std::span<const double> cost_;
  double slow_;
  SimulatedRun& run_;
  std::vector<char> done_;
  std::vector<size_t> place_;  // of a stage in its lane's order
  std::vector<State> lanes_;
  int communicating_ = 0;
  double now_ = 0;
};

}  // namespace

SimulatedRun simulate(const Program& program, std::span<const double> cost_ns, double stolen,
                      CommLanes lanes) {
  DUET_CHECK(cost_ns.size() == program.stages.size() && stolen >= 0 && stolen < 1);
  SimulatedRun run;
  run.start_ns.assign(program.stages.size(), 0);
  Clockwork(program, cost_ns, stolen, lanes, run).go();
  return run;
}

}  // namespace duet
