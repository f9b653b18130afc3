#include "overlap/schedule.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace duet {

namespace {

size_t at(int index) {
  return static_cast<size_t>(index);
}

Program program_of(const Recording& recording, const char* schedule) {
  Program program;
  program.schedule = schedule;
  program.micro_batches = recording.micro_batches;
  program.stages = recording.stages;
  program.buffers = recording.buffers;
  program.kept = recording.kept;
  program.place.resize(recording.buffers.size());  // each has its own
  std::iota(program.place.begin(), program.place.end(), 0);
  program.waits.resize(recording.stages.size());
  return program;
}

// Keeps, of all dependencies, those between queues that neither a queue's own order nor an earlier wait
// already guarantees. `sequence` is an order of all stages that respects the dependencies.
void place_events(Program& program, const std::vector<int>& sequence,
                  const std::vector<std::vector<int>>& dependencies) {
  const size_t queues = program.queue_count();
  std::vector<int> position(program.stages.size()), rank(program.stages.size());
  for (const auto& queue : program.queues())
    for (size_t i = 0; i < queue.size(); ++i) position[at(queue[i])] = static_cast<int>(i);
  for (size_t i = 0; i < sequence.size(); ++i) rank[at(sequence[i])] = static_cast<int>(i);
  // How much of each queue is known to be finished: after each stage, and where each queue is now.
  std::vector<int> finished(program.stages.size() * queues), now(queues * queues);
  for (int s : sequence) {
    const size_t queue = program.queue_of(s);
    int* clock = &now[queue * queues];
    // Latest first: one wait often covers the others.
    std::vector<int> wanted = dependencies[at(s)];
    std::sort(wanted.begin(), wanted.end(), [&](int a, int b) { return rank[at(a)] > rank[at(b)]; });
    for (int d : wanted) {
      const size_t other = program.queue_of(d);
      if (other == queue) {
        DUET_CHECK(position[at(d)] < position[at(s)]);
        continue;
      }
      if (clock[other] > position[at(d)]) continue;
      program.waits[at(s)].push_back(d);
      const int* known = &finished[at(d) * queues];
      for (size_t q = 0; q < queues; ++q) clock[q] = std::max(clock[q], known[q]);
    }
    clock[queue] = position[at(s)] + 1;
    std::copy(clock, clock + queues, &finished[at(s) * queues]);
  }
}

}  // namespace

std::vector<std::vector<int>> derive_dependencies(const std::vector<Stage>& stages, size_t buffer_count) {
  std::vector<int> writer(buffer_count, -1);
  std::vector<std::vector<int>> readers(buffer_count);
  std::vector<std::vector<int>> result(stages.size());
  for (size_t s = 0; s < stages.size(); ++s) {
    std::vector<int>& needs = result[s];
    for (BufferId b : stages[s].reads) {
      if (writer[b] >= 0) needs.push_back(writer[b]);
    }
    for (BufferId b : stages[s].writes) {
      if (writer[b] >= 0) needs.push_back(writer[b]);
      needs.insert(needs.end(), readers[b].begin(), readers[b].end());
    }
    std::sort(needs.begin(), needs.end());
    needs.erase(std::unique(needs.begin(), needs.end()), needs.end());
    for (BufferId b : stages[s].reads) readers[b].push_back(static_cast<int>(s));
    for (BufferId b : stages[s].writes) {
      writer[b] = static_cast<int>(s);
      readers[b].clear();
    }
  }
  return result;
}

Program sequential_program(const Recording& recording) {
  Program program = program_of(recording, "sequential");
  std::vector<int> sequence(recording.stages.size());
  std::iota(sequence.begin(), sequence.end(), 0);
  std::vector<std::vector<int>> previous(recording.stages.size());
  for (int s : sequence) {
    program.order[static_cast<size_t>(recording.stages[at(s)].lane)].push_back(s);
    if (s > 0) previous[at(s)].push_back(s - 1);
  }
  place_events(program, sequence, previous);
  return program;
}

Program program_in_order(const Recording& recording, const std::vector<int>& sequence,
                         const std::vector<std::vector<int>>& dependencies) {
  DUET_CHECK(sequence.size() == recording.stages.size());
  Program program = program_of(recording, "overlapped");
  program.runs_ahead = true;
  for (int s : sequence) program.order[static_cast<size_t>(recording.stages[at(s)].lane)].push_back(s);
  place_events(program, sequence, dependencies);
  return program;
}

namespace {

// Stages by ascending key; ties go to the earlier micro-batch, then to the earlier stage. A key grows
// within a micro-batch, and what a later micro-batch reads of an earlier one (KV rows) was written at a
// smaller key, so a dependency always points backwards.
std::vector<int> by_key(const std::vector<double>& key) {
  std::vector<int> sequence(key.size());
  std::iota(sequence.begin(), sequence.end(), 0);
  std::stable_sort(sequence.begin(), sequence.end(), [&](int a, int b) { return key[at(a)] < key[at(b)]; });
  return sequence;
}

}  // namespace

std::vector<int> segments(const Recording& recording) {
  std::vector<int> result;
  int micro_batch = -1, segment = 0;
  for (const Stage& stage : recording.stages) {
    if (stage.micro_batch != micro_batch) segment = 0;
    micro_batch = stage.micro_batch;
    result.push_back(segment);
    if (stage.lane == Lane::kComm) ++segment;
  }
  return result;
}

std::vector<int> segments_in_turns(const Recording& recording) {
  const std::vector<int> segment = segments(recording);
  std::vector<double> key;
  for (size_t s = 0; s < segment.size(); ++s) {
    key.push_back(segment[s] * recording.micro_batches + recording.stages[s].micro_batch);
  }
  return by_key(key);
}

std::vector<int> index_plus_skew(const Recording& recording, double skew) {
  std::vector<double> key;
  int micro_batch = -1, index = 0;
  for (const Stage& stage : recording.stages) {
    if (stage.micro_batch != micro_batch) index = 0;
    micro_batch = stage.micro_batch;
    key.push_back(index++ + skew * micro_batch);
  }
  return by_key(key);
}

Program overlapped_program(const Recording& recording, double skew) {
  return program_in_order(recording,
                          skew > 0 ? index_plus_skew(recording, skew) : segments_in_turns(recording),
                          derive_dependencies(recording.stages, recording.buffers.size()));
}

}  // namespace duet
