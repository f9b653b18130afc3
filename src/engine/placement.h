// Where ranks run on this machine: how many share it and how many threads each computes with. Asked by
// the memory plan and when ranks start, so that both agree.
#pragma once

namespace duet {

struct RankOptions;

/// Ranks of the job on this machine: all thread ranks; under MPI what the launcher says, else 1.
int local_ranks(const RankOptions& options);

/// RankOptions::threads_per_rank, or this machine's cores divided by the ranks on it, at least 1. A
/// process that its launcher has bound to some of the cores has those for itself.
int resolve_threads(const RankOptions& options);

}  // namespace duet
