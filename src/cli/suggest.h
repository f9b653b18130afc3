// The nearest name to one that was typed wrong. Called when a verb, flag or choice is unknown.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace duet {

/// Letters inserted, removed, replaced or swapped with their neighbour to turn `a` into `b`.
size_t edit_distance(std::string_view a, std::string_view b);

/// The candidate nearest to `name`, or "" when none is near (more than a third of the letters
/// would change, or 2 in a short name). A name that starts with `name` counts as near.
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

/// ". Did you mean X?", or "" when nothing is near.
std::string did_you_mean(std::string_view name, const std::vector<std::string>& candidates,
                         std::string_view prefix = "");

}  // namespace duet
