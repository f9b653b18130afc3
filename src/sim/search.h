// The order of an overlapped program, found rather than woven: candidate orders of the micro-batches'
// stages are run in virtual time on stage costs, and the shortest wins. Pure: every rank that is given
// the same costs finds the same program.
#pragma once

#include <span>

#include "overlap/recorder.h"
#include "overlap/schedule.h"

namespace duet {

/// `cost_ns`: one entry per stage of the recording; `stolen`: as for simulate(). Candidates: segments in
/// turns (schedule.h), index plus skew for a row of skews, and greedy orders that always take the stage that
/// can start first.
Program search_program(const Recording& recording, std::span<const double> cost_ns, double stolen = 0);

}  // namespace duet
