// Faults put into sound programs, each of which the validator must object to, and the oracle that tells which
// shared places do harm: lanes run in many orders over places that remember whose value they hold.
#pragma once

#include <random>

#include "overlap/program.h"

namespace duet {

/// Every event of the program dropped in turn.
void expect_objection_to_dropped_events(const Program& good);
/// Two collectives of one rank in each other's place, the other ranks unchanged: all pairs, or a sample.
void expect_objection_to_swapped_collectives(const Program& good, std::mt19937& rng);
/// Two buffers in one place: all pairs, or a sample. Where a run over shared places reads what it must not,
/// the validator must object. Returns how many pairs did harm.
int expect_objection_to_shared_places(const Program& good, std::mt19937& rng);

}  // namespace duet
