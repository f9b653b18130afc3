#include "overlap/validator.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <sstream>

namespace duet {

namespace {

size_t index_of(int index) {
  return static_cast<size_t>(index);
}

class Check {
 public:
  explicit Check(const Program& program) : p_(program), position_(program.stages.size(), -1) {}

  std::vector<std::string> run() {
    check_lanes();
    if (!defects_.empty()) return defects_;
    check_waits();
    if (!defects_.empty()) return defects_;
    if (!order_stages()) return defects_;
    check_accesses();
    if (p_.schedule == "sequential") check_one_at_a_time();
    // Who is in use when follows from the order of accesses, so that must be sound first.
    if (defects_.empty()) check_places();
    return defects_;
  }

 private:
  std::string label(int s) const { return stage_label(p_.stages[index_of(s)]); }

  void check_lanes() {
    for (const Stage& stage : p_.stages) {
      if (p_.queue_of(stage) >= p_.queue_count()) {
        defects_.push_back(fmt::format("{} is of a micro-batch that does not exist", stage_label(stage)));
        return;
      }
    }
    std::vector<int> filled(p_.queue_count());
    for (Lane lane : {Lane::kCompute, Lane::kComm}) {
      const auto& list = p_.lane_order(lane);
      for (size_t i = 0; i < list.size(); ++i) {
        const int s = list[i];
        if (s < 0 || index_of(s) >= p_.stages.size()) {
          defects_.push_back(fmt::format("{} lane runs stage {}, which does not exist", to_string(lane), s));
        } else if (p_.stages[index_of(s)].lane != lane) {
          defects_.push_back(fmt::format("{} belongs on the {} lane but is queued on {}", label(s),
                                         to_string(p_.stages[index_of(s)].lane), to_string(lane)));
        } else if (position_[index_of(s)] >= 0) {
          defects_.push_back(fmt::format("{} is queued twice", label(s)));
        } else {
          position_[index_of(s)] = filled[p_.queue_of(s)]++;
        }
      }
    }
    for (size_t s = 0; s < p_.stages.size(); ++s) {
      if (position_[s] < 0 && defects_.empty()) {
        defects_.push_back(fmt::format("{} is on no lane", label(static_cast<int>(s))));
      }
    }
    if (p_.place.size() != p_.buffers.size())
      defects_.push_back("the table of places has another length than the buffers");
    if (p_.waits.size() != p_.stages.size())
      defects_.push_back("the table of waits has another length than the stages");
    for (const Stage& stage : p_.stages) {
      for (const auto* list : {&stage.reads, &stage.writes}) {
        for (BufferId b : *list) {
          if (b >= p_.buffers.size())
            defects_.push_back(
                fmt::format("{} names buffer {}, which does not exist", stage_label(stage), b));
        }
      }
    }
  }

  void check_waits() {
    for (size_t s = 0; s < p_.stages.size(); ++s) {
      for (int w : p_.waits[s]) {
        if (w < 0 || index_of(w) >= p_.stages.size()) {
          defects_.push_back(
              fmt::format("{} waits for stage {}, which does not exist", label(static_cast<int>(s)), w));
        } else if (p_.queue_of(w) == p_.queue_of(p_.stages[s])) {
          defects_.push_back(
              fmt::format("{} waits for {} of its own queue", label(static_cast<int>(s)), label(w)));
        }
      }
    }
  }

  // Runs all queues side by side; a stage's clock says how much of each queue had to be finished before it
  // ended. An executor that has one thread for several queues orders more, which nothing may rely on. False
  // when the queues get stuck.
  bool order_stages() {
    const std::vector<std::vector<int>> queues = p_.queues();
    clock_.assign(p_.stages.size(), {});
    std::vector<bool> done(p_.stages.size());
    std::vector<size_t> next(queues.size());
    std::vector<std::vector<int>> now(queues.size(), std::vector<int>(queues.size()));
    for (bool moved = true; moved;) {
      moved = false;
      for (size_t queue = 0; queue < queues.size(); ++queue) {
        while (next[queue] < queues[queue].size()) {
          const int s = queues[queue][next[queue]];
          const auto& waits = p_.waits[index_of(s)];
          if (!std::all_of(waits.begin(), waits.end(), [&](int w) { return done[index_of(w)]; })) break;
          for (int w : waits) {
            for (size_t q = 0; q < queues.size(); ++q)
              now[queue][q] = std::max(now[queue][q], clock_[index_of(w)][q]);
          }
          now[queue][queue] = static_cast<int>(++next[queue]);
          clock_[index_of(s)] = now[queue];
          done[index_of(s)] = moved = true;
        }
      }
    }
    for (size_t queue = 0; queue < queues.size(); ++queue) {
      if (next[queue] < queues[queue].size()) {
        const int s = queues[queue][next[queue]];
        defects_.push_back(fmt::format("deadlock: {} waits for {}, which never finishes before it", label(s),
                                       label(p_.waits[index_of(s)].front())));
      }
    }
    return defects_.empty();
  }

  bool before(int a, int b) const {
    const size_t queue = p_.queue_of(a);
    if (queue == p_.queue_of(b)) return position_[index_of(a)] < position_[index_of(b)];
    return clock_[index_of(b)][queue] > position_[index_of(a)];
  }

  void conflict(int first, int second, BufferId buffer, const char* what) {
    if (!before(first, second)) {
      defects_.push_back(fmt::format("{}: {} must come after {} ({}), but nothing orders them",
                                     p_.buffers[buffer], label(second), label(first), what));
    }
  }

  // Pairs between neighbouring writes suffice: the order of the others follows from them.
  void check_accesses() {
    std::vector<int> writer(p_.buffers.size(), -1);
    std::vector<std::vector<int>> readers(p_.buffers.size());
    for (size_t i = 0; i < p_.stages.size(); ++i) {
      const int s = static_cast<int>(i);
      for (BufferId b : p_.stages[i].reads) {
        if (writer[b] >= 0) conflict(writer[b], s, b, "it reads what that writes");
      }
      for (BufferId b : p_.stages[i].writes) {
        for (int r : readers[b]) conflict(r, s, b, "it overwrites what that reads");
        if (writer[b] >= 0) conflict(writer[b], s, b, "it overwrites what that writes");
      }
      for (BufferId b : p_.stages[i].reads) readers[b].push_back(s);
      for (BufferId b : p_.stages[i].writes) {
        writer[b] = s;
        readers[b].clear();
      }
    }
  }

  // The oracle and the baseline: it must not hide anything.
  void check_one_at_a_time() {
    for (int s = 1; index_of(s) < p_.stages.size(); ++s) {
      if (!before(s - 1, s)) {
        defects_.push_back(
            fmt::format("{} may run beside {} in a sequential program", label(s), label(s - 1)));
      }
    }
  }

  // From a write that does not build on what was there, to the last access before the next such write.
  struct Use {
    BufferId buffer;
    std::vector<int> accesses;
    bool from_start = false;  // read before anything was written
    bool to_end = false;      // read after the program
  };

  std::vector<Use> uses_of(BufferId buffer) const {
    std::vector<Use> uses;
    const bool kept = std::find(p_.kept.begin(), p_.kept.end(), buffer) != p_.kept.end();
    for (size_t i = 0; i < p_.stages.size(); ++i) {
      const auto has = [&](const std::vector<BufferId>& list) {
        return std::find(list.begin(), list.end(), buffer) != list.end();
      };
      const bool reads = has(p_.stages[i].reads), writes = has(p_.stages[i].writes);
      if (!reads && !writes) continue;
      if (uses.empty() || !reads) {
        if (!uses.empty()) uses.back().to_end = false;
        uses.push_back({buffer, {}, reads, false});
      }
      uses.back().accesses.push_back(static_cast<int>(i));
      uses.back().to_end = writes || kept;
    }
    return uses;
  }

  // All of `a` is over before `b` begins.
  bool over_before(const Use& a, const Use& b) const {
    return !a.to_end && !b.from_start && std::all_of(a.accesses.begin(), a.accesses.end(), [&](int s) {
      return s != b.accesses.front() && before(s, b.accesses.front());
    });
  }

  void check_places() {
    std::map<int, std::vector<BufferId>> tenants;
    for (BufferId b = 0; b < p_.place.size(); ++b) tenants[p_.place[b]].push_back(b);
    for (const auto& [place, buffers] : tenants) {
      for (size_t i = 0; i < buffers.size(); ++i) {
        for (size_t j = i + 1; j < buffers.size(); ++j) check_tenants(buffers[i], buffers[j]);
      }
    }
  }

  void check_tenants(BufferId x, BufferId y) {
    const std::vector<Use> of_y = uses_of(y);
    for (const Use& a : uses_of(x)) {
      for (const Use& b : of_y) {
        if (over_before(a, b) || over_before(b, a)) continue;
        defects_.push_back(
            fmt::format("{} and {} lie in one place and are in use at the same time: from {} and from {}",
                        p_.buffers[x], p_.buffers[y], label(a.accesses.front()), label(b.accesses.front())));
        return;
      }
    }
  }

  const Program& p_;
  std::vector<int> position_;            // in its queue
  std::vector<std::vector<int>> clock_;  // by stage and queue
  std::vector<std::string> defects_;
};

}  // namespace

std::vector<std::string> validate(const Program& program) {
  return Check(program).run();
}

std::string collectives_in_order(const Program& program) {
  std::string calls;
  for (int s : program.lane_order(Lane::kComm))
    calls += fmt::format("{} (stage {})\n", stage_label(program.stages[index_of(s)]), s);
  return calls;
}

std::vector<std::string> validate_meeting(const std::vector<std::string>& ranks) {
  std::vector<std::string> defects;
  for (size_t r = 1; r < ranks.size(); ++r) {
    std::istringstream own(ranks[r]), first(ranks[0]);
    for (int i = 1; own || first; ++i) {
      std::string mine, theirs;
      std::getline(own, mine);
      std::getline(first, theirs);
      if (mine == theirs) continue;
      defects.push_back(fmt::format("rank {} calls {} as collective {}, rank 0 {}: they would never meet", r,
                                    mine.empty() ? "nothing" : mine, i, theirs.empty() ? "nothing" : theirs));
      break;
    }
  }
  return defects;
}

}  // namespace duet
