// Schedules: from the stages of one or more micro-batches to a Program. THIS is the dual-batch
// overlap; everything else only runs, checks or draws what comes out of here. Pure functions of
// their arguments, so every rank derives the same program.
#pragma once

#include "overlap/program.h"
#include "overlap/recorder.h"

namespace duet {

/// How far, in stages, each micro-batch runs behind the one before it. Half-way between one and
/// two stages keeps both lanes fed in nearly every mix of stage lengths: micro-batch B's stage n is
/// placed between A's stages n + 1 and n + 2, so B's arithmetic covers A's collective and back.
inline constexpr double kDefaultSkew = 1.5;

/// Nothing overlapped: every stage waits for the one before it, on whichever lane that is. The
/// oracle for the overlapped program, and the baseline of every measurement. Takes any number of
/// micro-batches (run one after the other), so the price of the split alone can be measured.
Program sequential_program(const Recording& recording);

/// Each lane runs the stages in the order of (index within the micro-batch + skew · micro_batch).
/// The order is consistent with every dependency, so no program made here can deadlock.
Program overlapped_program(const Recording& recording, double skew = kDefaultSkew);

/// What s must come after, by what stages read and write, in logical order: for each stage the
/// last writer of everything it touches, and for what it writes also the readers since.
std::vector<std::vector<int>> derive_dependencies(const std::vector<Stage>& stages, size_t buffer_count);

}  // namespace duet
