// The program of a step: what every rank makes of the batch that came, and nothing else does. Called by ranks
// before a step, and by the planner and tests to know what ranks would run.
#pragma once

#include "model/batch.h"
#include "overlap/program.h"
#include "overlap/recorder.h"

namespace duet {

/// `recording`: of batch.micro_batches() micro-batches. Sequential, or overlapped: in the order found on the
/// costs that came with the batch, by turns where none came, by index and `skew` where that is > 0.
Program step_program(const Recording& recording, const StepBatch& batch, double skew = 0);

}  // namespace duet
