// Schedules: from the stages of one or more micro-batches to a Program. THIS is the dual-batch
// overlap; everything else only runs, checks or draws what comes out of here. Pure functions of
// their arguments, so every rank derives the same program.
#pragma once

#include "overlap/program.h"
#include "overlap/recorder.h"

namespace duet {

/// Nothing overlapped: every stage waits for the one before it, on whichever lane that is. The
/// oracle for the overlapped program, and the baseline of every measurement. Takes any number of
/// micro-batches (run one after the other), so the price of the split alone can be measured.
Program sequential_program(const Recording& recording);

/// Each lane has the stages in the order in which `sequence`, an order of all stages that respects the
/// dependencies, has them; so no program made here can deadlock. The compute lane runs ahead
/// (Program::runs_ahead). `dependencies`: of derive_dependencies.
Program program_in_order(const Recording& recording, const std::vector<int>& sequence,
                         const std::vector<std::vector<int>>& dependencies);

/// The segment of each stage: how many collectives its micro-batch has before it.
std::vector<int> segments(const Recording& recording);
/// Micro-batches in turns, segment by segment: A computes up to its next collective, then B does while
/// that collective runs, then A goes on. Needs no costs, and hides everything where segments last longer
/// than collectives.
std::vector<int> segments_in_turns(const Recording& recording);
/// In the order of (index within the micro-batch + skew · micro_batch): B runs `skew` stages behind A.
std::vector<int> index_plus_skew(const Recording& recording, double skew);

/// segments_in_turns, or index_plus_skew where `skew` > 0. With stage costs at hand, sim/search.h finds
/// better ones.
Program overlapped_program(const Recording& recording, double skew = 0);

/// What s must come after, by what stages read and write, in logical order: for each stage the
/// last writer of everything it touches, and for what it writes also the readers since.
std::vector<std::vector<int>> derive_dependencies(const std::vector<Stage>& stages, size_t buffer_count);

}  // namespace duet
