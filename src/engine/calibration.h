// Calibration: short steps of made-up tokens at start-up, from which the planner learns what stages cost on
// this machine, with this model, over this network. Run once, before there are requests.
#pragma once

#include <string>

namespace duet {

class RankGroup;
struct RankOptions;
struct ModelInfo;

/// Prefill and decode steps of rising size, alone and overlapped, until they have taken some seconds or the
/// limits of `options` and of the KV cache are reached.
void run_calibration(RankGroup& group, const RankOptions& options, const ModelInfo& info);

/// Runs a short and a longer step against costs that were measured before. Empty where both take what is
/// predicted, else what does not: a link or a busy machine changes what no name of a machine shows.
std::string costs_differ(RankGroup& group, const RankOptions& options, const ModelInfo& info);

}  // namespace duet
