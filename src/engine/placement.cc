#include "engine/placement.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "base/cpu.h"
#include "engine/rank_group.h"

namespace duet {

int local_ranks(const RankOptions& options) {
  if (options.backend == Backend::kThreads) return options.ranks;
  for (const char* name : {"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"}) {
    if (const char* text = std::getenv(name)) return std::max(1, std::atoi(text));
  }
  return 1;
}

int resolve_threads(const RankOptions& options) {
  if (options.threads_per_rank > 0) return options.threads_per_rank;
  const int cores = static_cast<int>(available_cores().size());
  const bool bound = cores < static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  if (options.backend == Backend::kMpi && bound) return cores;
  return std::max(1, cores / local_ranks(options));
}

}  // namespace duet
