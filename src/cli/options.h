// From flags to what the engine takes: LlmOptions and SamplingParams.
// Contradictions between flags end here.
#pragma once

#include <string>

#include "duet/llm.h"

namespace duet {

class Flags;

/// --dbo, --enable-dbo and their variables as one answer: "off", "on" or "auto". Throws UsageError when two
/// flags of one command line contradict each other; between variables, the one that says off wins.
std::string overlap_mode(const Flags& flags);

/// Where ranks run and how many, from the flags and from how this process was started.
struct RankPlace {
  int ranks = 1;
  bool mpi = false;
  bool worker = false;  // an MPI rank other than 0: prints nothing, reads no prompts
};
/// Throws UsageError: another number of ranks than MPI processes, the mpi backend without mpirun.
RankPlace place_ranks(const Flags& flags);
/// Rank of this process as its launcher says, before MPI is there to ask; 0 without a launcher.
int mpi_rank_from_env();
/// True on an MPI rank other than 0, judged by the environment alone.
bool is_mpi_worker();

LlmOptions llm_options(const Flags& flags);
/// No tokenizer.json where one is looked for: token ids in and out still run.
bool lacks_tokenizer(const LlmOptions& options);
SamplingParams sampling_params(const Flags& flags);

}  // namespace duet
