// Proves, before it runs, that a program can finish and that no two stages touch a buffer
// unordered. Called when a program is first built, and by tests on every program they can make.
#pragma once

#include <string>
#include <vector>

#include "overlap/program.h"

namespace duet {

/// Empty when the program is sound; otherwise one sentence per defect: a stage missing from or
/// twice in a lane, a wait for nothing or for the own lane, a cycle (deadlock), two conflicting
/// accesses of a buffer that no event orders as the logical order demands, two buffers of one place
/// that are in use at the same time, a sequential program that overlaps.
std::vector<std::string> validate(const Program& program);

/// The collectives of a program as its rank calls them, a line each: "L3.b1 dispatch (stage 57)".
std::string collectives_in_order(const Program& program);
/// Empty when the collectives of all ranks meet; otherwise one sentence for each rank that calls another
/// one than rank 0 does. `ranks`: collectives_in_order of each.
std::vector<std::string> validate_meeting(const std::vector<std::string>& ranks);

}  // namespace duet
