// Calibration: short steps of made-up tokens at start-up, from which the planner learns what stages cost on
// this machine, with this model, over this network. Run once, before there are requests.
#pragma once

namespace duet {

class RankGroup;
struct RankOptions;
struct ModelInfo;

/// Prefill and decode steps of rising size, alone and overlapped, until they have taken some seconds or the
/// limits of `options` and of the KV cache are reached.
void run_calibration(RankGroup& group, const RankOptions& options, const ModelInfo& info);

}  // namespace duet
