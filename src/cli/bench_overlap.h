// Measures one kind of step off, split alone, on and auto in turns, and says what the overlap hid and what
// kept it from hiding all. The words are those of docs/overlap.md. Called by `duet bench overlap`.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/probe_batch.h"
#include "engine/rank_group.h"

namespace duet {

/// A ratio of paired times: median, and the 95 % interval of its geometric mean (t distribution).
struct PairedRatio {
  double median = 1, low = 1, high = 1;
};
PairedRatio paired_ratio(const std::vector<double>& numerator, const std::vector<double>& denominator);
double median(std::vector<double> values);

/// Milliseconds, medians over the repeats.
struct LaneTimes {
  double step = 0, step_low = 0, step_high = 0;  // median, least, most
  double compute = 0, comm = 0, exposed = 0;
  double comm_cpu = 0;     // of the comm lane's thread
  double compute_cpu = 0;  // of the compute lane's thread; the core's interrupts count with whom they hit
  double imbalance = 0;    // computing of the slowest rank beyond the fastest's
};

struct OverlapCase {
  ProbeShape shape;
  std::string path;
  int micro_batches = 1, auto_micro_batches = 1;
  LaneTimes off, split, on, automatic;
  double comm = 0;  // ΣT_comm, of steps whose ranks meet before each collective
  double comm_share = 0, ideal = 1, eta = 0, hidden = 0;
  PairedRatio speedup, auto_over_off, auto_over_best;
  double predicted_off = 0, predicted_on = 0;  // by the virtual-time executor, ms
  double predicted_lanes_apart = 0;            // were there a comm lane per micro-batch
  std::string reason;                          // of auto's decision
  bool exact = true;                           // all logits equal, bit for bit
  // What kept h from 1: parts of (on − max(computation, communication)), ms.
  double split_price = 0, comm_cpu_price = 0, bubbles = 0, rest = 0;
};

struct OverlapBenchOptions {
  int repeats = 5;
  int micro_batches = 0;  // of the "on" runs; 0: as many as are predicted to be fastest
};

/// `progress(done, of)` after each step.
OverlapCase bench_overlap_case(RankGroup& group, const ProbeShape& shape, const OverlapBenchOptions& options,
                               const std::function<void(int, int)>& progress);

/// A step that is not run: what the virtual-time executor makes of it from the costs measured so far.
struct VirtualCase {
  ProbeShape shape;
  std::string path;
  int micro_batches = 1;                          // of the fastest split
  double off = 0, on = 0, compute = 0, comm = 0;  // ms
  double lanes_apart = 0;                         // the same split with one comm lane per micro-batch, ms
};
VirtualCase virtual_case(RankGroup& group, const ProbeShape& shape, const OverlapBenchOptions& options);

/// Thread ranks on a shaped link: sets the bandwidth at which communication takes `share` of a step of this
/// shape, and has the costs measured again. Returns bytes per second.
double set_comm_share(RankGroup& group, const ProbeShape& shape, double share);

}  // namespace duet
