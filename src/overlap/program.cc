#include "overlap/program.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/hash.h"

namespace duet {

const char* to_string(Lane lane) {
  return lane == Lane::kCompute ? "compute" : "comm";
}

std::vector<std::vector<int>> Program::queues() const {
  std::vector<std::vector<int>> result(queue_count());
  for (const auto& lane : order)
    for (int s : lane) result[queue_of(s)].push_back(s);
  return result;
}

int Program::event_count() const {
  int count = 0;
  for (const auto& list : waits) count += static_cast<int>(list.size());
  return count;
}

namespace {

class ProgramHash {
 public:
  void number(uint64_t value) {
    for (int i = 0; i < 8; ++i) fnv_.byte(static_cast<uint8_t>(value >> (8 * i)));
  }
  void text(const std::string& value) {
    number(value.size());
    fnv_.bytes(value);
  }
  template <typename List>
  void numbers(const List& list) {
    number(list.size());
    for (auto value : list) number(static_cast<uint64_t>(value));
  }
  uint64_t value() const { return fnv_.value(); }

 private:
  Fnv1a fnv_;
};

}  // namespace

uint64_t hash(const Program& program) {
  ProgramHash sum;
  sum.text(program.schedule);
  sum.number(static_cast<uint64_t>(program.micro_batches));
  for (const Stage& stage : program.stages) {
    sum.text(stage.kind);
    sum.number(static_cast<uint64_t>(stage.layer));
    sum.number(static_cast<uint64_t>(stage.micro_batch));
    sum.number(static_cast<uint64_t>(stage.lane));
    sum.numbers(stage.reads);
    sum.numbers(stage.writes);
  }
  sum.numbers(program.place);
  sum.numbers(program.kept);
  for (const auto& lane : program.order) sum.numbers(lane);
  sum.number(program.runs_ahead ? 1 : 0);
  for (const auto& list : program.waits) sum.numbers(list);
  return sum.value();
}

std::string stage_label(const Stage& stage) {
  if (stage.layer < 0) return fmt::format("b{} {}", stage.micro_batch, stage.kind);
  return fmt::format("L{}.b{} {}", stage.layer, stage.micro_batch, stage.kind);
}

std::string to_string(const Program& program) {
  std::string text = fmt::format("{} program, {} micro-batch(es), {} stages, {} events{}\n", program.schedule,
                                 program.micro_batches, program.stages.size(), program.event_count(),
                                 program.runs_ahead ? ", computing runs ahead" : "");
  for (Lane lane : {Lane::kCompute, Lane::kComm}) {
    text += fmt::format("{}:\n", to_string(lane));
    for (int s : program.lane_order(lane)) {
      text += "  " + stage_label(program.stages[static_cast<size_t>(s)]);
      for (int w : program.waits[static_cast<size_t>(s)]) {
        text += fmt::format("  <- {}", stage_label(program.stages[static_cast<size_t>(w)]));
      }
      text += "\n";
    }
  }
  return text;
}

}  // namespace duet
