#include "overlap/program.h"

#include <fmt/format.h>

#include <algorithm>

namespace duet {

const char* to_string(Lane lane) {
  return lane == Lane::kCompute ? "compute" : "comm";
}

int Program::event_count() const {
  int count = 0;
  for (const auto& list : waits) count += static_cast<int>(list.size());
  return count;
}

namespace {

class Fnv {
 public:
  void number(uint64_t value) {
    for (int i = 0; i < 8; ++i) byte(static_cast<uint8_t>(value >> (8 * i)));
  }
  void text(const std::string& value) {
    number(value.size());
    for (char c : value) byte(static_cast<uint8_t>(c));
  }
  template <typename List>
  void numbers(const List& list) {
    number(list.size());
    for (auto value : list) number(static_cast<uint64_t>(value));
  }
  uint64_t value() const { return state_; }

 private:
  void byte(uint8_t b) { state_ = (state_ ^ b) * 0x100000001b3ull; }
  uint64_t state_ = 0xcbf29ce484222325ull;
};

}  // namespace

uint64_t hash(const Program& program) {
  Fnv fnv;
  fnv.text(program.schedule);
  fnv.number(static_cast<uint64_t>(program.micro_batches));
  for (const Stage& stage : program.stages) {
    fnv.text(stage.kind);
    fnv.number(static_cast<uint64_t>(stage.layer));
    fnv.number(static_cast<uint64_t>(stage.micro_batch));
    fnv.number(static_cast<uint64_t>(stage.lane));
    fnv.numbers(stage.reads);
    fnv.numbers(stage.writes);
  }
  fnv.numbers(program.place);
  fnv.numbers(program.kept);
  for (const auto& lane : program.order) fnv.numbers(lane);
  for (const auto& list : program.waits) fnv.numbers(list);
  return fnv.value();
}

std::string stage_label(const Stage& stage) {
  if (stage.layer < 0) return fmt::format("b{} {}", stage.micro_batch, stage.kind);
  return fmt::format("L{}.b{} {}", stage.layer, stage.micro_batch, stage.kind);
}

std::string to_string(const Program& program) {
  std::string text = fmt::format("{} program, {} micro-batch(es), {} stages, {} events\n", program.schedule,
                                 program.micro_batches, program.stages.size(), program.event_count());
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
