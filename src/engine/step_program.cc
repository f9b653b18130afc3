#include "engine/step_program.h"

#include "base/error.h"
#include "engine/stage_work.h"
#include "overlap/schedule.h"
#include "sim/search.h"

namespace duet {

Program step_program(const Recording& recording, const StepBatch& batch, double skew) {
  DUET_CHECK(recording.micro_batches == batch.micro_batches());
  if (!batch.overlap) return sequential_program(recording);
  if (skew > 0 || batch.stage_ns.empty()) return overlapped_program(recording, skew);
  return search_program(recording,
                        stage_costs(recording.stages, StageKinds(recording.stages), batch.stage_ns),
                        double{batch.stolen});
}

}  // namespace duet
