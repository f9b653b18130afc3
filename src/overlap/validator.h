// Proves, before it runs, that a program can finish and that no two stages touch a buffer
// unordered. Called when a program is first built, and by tests on every program they can make.
#pragma once

#include <string>
#include <vector>

#include "overlap/program.h"

namespace duet {

/// Empty when the program is sound; otherwise one sentence per defect: a stage missing from or
/// twice in a lane, a wait for nothing or for the own lane, a cycle (deadlock), two conflicting
/// accesses of a buffer that no event orders as the logical order demands.
std::vector<std::string> validate(const Program& program);

}  // namespace duet
