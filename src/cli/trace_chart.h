// A Gantt chart of one layer, sequential above overlapped, as a self-contained SVG: what
// `duet trace chart` writes and the demo shows.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace duet {

/// Draws rank `rank`'s two lanes from the beginning of `layer` to its end: of the trace's last
/// sequential step (if it has one) and of its last overlapped step, on one time scale. Slices of other
/// layers that fall into the window are pale. Throws Error(kCorrupt) for what is no trace of Duet,
/// kInvalidArgument when the trace has no such layer or rank.
std::string trace_chart_svg(std::string_view trace, const std::string& file, int64_t layer, int rank);

}  // namespace duet
