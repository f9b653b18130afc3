#include "engine/program_faults.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "overlap/validator.h"

namespace duet {

namespace {

// Enough to meet every kind of pair, few enough to be quick.
constexpr size_t kMostPairs = 150;

std::vector<std::pair<int, int>> pairs_of(size_t count, std::mt19937& rng) {
  std::vector<std::pair<int, int>> pairs;
  for (size_t i = 0; i < count; ++i)
    for (size_t j = i + 1; j < count; ++j) pairs.emplace_back(static_cast<int>(i), static_cast<int>(j));
  if (pairs.size() > kMostPairs) {
    std::shuffle(pairs.begin(), pairs.end(), rng);
    pairs.resize(kMostPairs);
  }
  return pairs;
}

constexpr int kStart = -1, kNothing = -2;

// Who wrote a value: buffer and writing stage, or kStart for what was there before the program.
struct Value {
  BufferId buffer = 0;
  int writer = kNothing;
  bool operator==(const Value&) const = default;
};

// Runs the queues one stage at a time; `first` says which goes when several could. A stage takes what it
// reads at its start, and finds it still there, but for what it writes itself, when it has written.
class PlaceRun {
 public:
  explicit PlaceRun(const Program& program) : p_(program), last_writer_(program.buffers.size(), kStart) {
    wanted_.resize(p_.stages.size());
    for (size_t s = 0; s < p_.stages.size(); ++s) {
      for (BufferId b : p_.stages[s].reads) wanted_[s].push_back({b, last_writer_[b]});
      for (BufferId b : p_.stages[s].writes) last_writer_[b] = static_cast<int>(s);
    }
    read_.resize(p_.buffers.size());
    for (const Stage& stage : p_.stages)
      for (BufferId b : stage.reads) read_[b] = true;
  }

  bool harmed(const std::function<size_t()>& first) {
    held_.assign(p_.buffers.size(), {0, kNothing});
    for (const auto& values : wanted_)
      for (const Value& v : values)
        if (v.writer == kStart && !claim(v)) return true;
    std::vector<bool> done(p_.stages.size());
    const std::vector<std::vector<int>> queues = p_.queues();
    std::vector<size_t> next(queues.size());
    for (size_t left = p_.stages.size(); left > 0; --left) {
      const size_t wish = first() % queues.size();
      for (size_t i = 0; i < queues.size(); ++i) {
        const size_t q = (wish + i) % queues.size();
        if (next[q] == queues[q].size()) continue;
        const size_t s = static_cast<size_t>(queues[q][next[q]]);
        const auto& waits = p_.waits[s];
        if (!std::all_of(waits.begin(), waits.end(), [&](int w) { return done[static_cast<size_t>(w)]; }))
          continue;
        if (!run(s)) return true;
        done[s] = true;
        ++next[q];
        break;
      }
    }
    // What is read after the program must be there.
    for (BufferId b = 0; b < p_.buffers.size(); ++b) {
      const bool kept = std::find(p_.kept.begin(), p_.kept.end(), b) != p_.kept.end();
      if ((kept || !read_[b]) && !holds({b, last_writer_[b]})) return true;
    }
    return false;
  }

 private:
  Value& place(BufferId b) { return held_[static_cast<size_t>(p_.place[b])]; }
  bool holds(const Value& v) { return place(v.buffer) == v; }
  bool claim(const Value& v) {
    Value& at = place(v.buffer);
    if (at.writer == kStart) return at == v;
    at = v;
    return true;
  }

  bool run(size_t s) {
    const Stage& stage = p_.stages[s];
    for (const Value& v : wanted_[s])
      if (!holds(v)) return false;
    for (BufferId b : stage.writes) place(b) = {b, static_cast<int>(s)};
    for (const Value& v : wanted_[s]) {
      const bool own = std::find(stage.writes.begin(), stage.writes.end(), v.buffer) != stage.writes.end();
      if (!own && !holds(v)) return false;
    }
    return std::all_of(stage.writes.begin(), stage.writes.end(), [&](BufferId b) {
      return holds({b, static_cast<int>(s)});
    });
  }

  const Program& p_;
  std::vector<int> last_writer_;
  std::vector<std::vector<Value>> wanted_;  // by stage
  std::vector<bool> read_;
  std::vector<Value> held_;  // by place
};

}  // namespace

void expect_objection_to_dropped_events(const Program& good) {
  Program bad = good;
  for (size_t s = 0; s < good.waits.size(); ++s) {
    for (size_t w = 0; w < good.waits[s].size(); ++w) {
      bad.waits[s].erase(bad.waits[s].begin() + static_cast<long>(w));
      EXPECT_FALSE(validate(bad).empty())
          << good.schedule << ": " << stage_label(good.stages[s]) << " without its wait for "
          << stage_label(good.stages[static_cast<size_t>(good.waits[s][w])]);
      bad.waits[s] = good.waits[s];
    }
  }
}

void expect_objection_to_swapped_collectives(const Program& good, std::mt19937& rng) {
  const std::string others = collectives_in_order(good);
  Program bad = good;
  std::vector<int>& lane = bad.order[static_cast<size_t>(Lane::kComm)];
  for (const auto& [i, j] : pairs_of(lane.size(), rng)) {
    std::swap(lane[static_cast<size_t>(i)], lane[static_cast<size_t>(j)]);
    EXPECT_FALSE(validate_meeting({others, collectives_in_order(bad), others}).empty()) << i << ' ' << j;
    EXPECT_NE(hash(bad), hash(good));
    lane = good.order[static_cast<size_t>(Lane::kComm)];
  }
}

int expect_objection_to_shared_places(const Program& good, std::mt19937& rng) {
  int harmful = 0;
  Program bad = good;
  for (const auto& [x, y] : pairs_of(good.buffers.size(), rng)) {
    bad.place[static_cast<size_t>(y)] = x;
    PlaceRun run(bad);
    bool harmed = false;
    for (size_t q = 0; q < bad.queue_count() && !harmed; ++q) harmed = run.harmed([q] { return q; });
    for (int i = 0; i < 3 && !harmed; ++i) harmed = run.harmed([&] { return size_t{rng()}; });
    if (harmed) {
      ++harmful;
      EXPECT_FALSE(validate(bad).empty()) << good.buffers[static_cast<size_t>(y)] << " in the place of "
                                          << good.buffers[static_cast<size_t>(x)];
    }
    bad.place[static_cast<size_t>(y)] = good.place[static_cast<size_t>(y)];
  }
  return harmful;
}

}  // namespace duet
