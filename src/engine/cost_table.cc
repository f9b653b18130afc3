#include "engine/cost_table.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/json_text.h"

namespace duet {

namespace {

constexpr double kMostSamples = 8;
constexpr size_t kFirstSamples = 5;
// Older samples of attention fade: what was measured a hundred steps ago hardly counts.
constexpr double kFade = 0.97;
constexpr double kMostWarmth = 0.3;
constexpr double kMostPace = 2.5;
constexpr int kFresh = 2;            // overlapped steps for which the pace of a sequential one holds
constexpr double kStepNoise = 0.05;  // of the computing of equal steps
constexpr double kUsuallyStolen = 0.02;
int half_octave(double rows) {
  return static_cast<int>(std::lround(2.0 * std::log2(std::max(rows, 1.0))));
}

double between(const CostCurve::Point& a, const CostCurve::Point& b, double rows) {
  return a.value + (b.value - a.value) * (rows - a.rows) / (b.rows - a.rows);
}

double total_rows(const std::vector<MicroBatchWork>& work) {
  double rows = 0;
  for (const MicroBatchWork& w : work) rows += w.rows[0];
  return rows;
}

}  // namespace

// ---- curves

// The point of the half octave of `rows`, with one sample more, whose value is still to come.
CostCurve::Point& CostCurve::point_at(double rows) {
  const int bucket = half_octave(rows);
  auto at = std::find_if(points_.begin(), points_.end(),
                         [&](const Point& p) { return half_octave(p.rows) >= bucket; });
  if (at == points_.end() || half_octave(at->rows) != bucket) at = points_.insert(at, {rows, 0, 0});
  at->weight = std::min(at->weight + 1, kMostSamples);
  at->rows += (rows - at->rows) / at->weight;
  return *at;
}

void CostCurve::add(double rows, double value) {
  if (rows <= 0) return;
  Point& p = point_at(rows);
  p.value += (value - p.value) / p.weight;
}

void CostCurve::add_steady(double rows, double value) {
  if (rows <= 0) return;
  Point& p = point_at(rows);
  if (p.weight > static_cast<double>(std::min(p.first.size() + 1, kFirstSamples))) {
    p.value += (value - p.value) / p.weight;
    return;
  }
  p.first.push_back(value);
  std::vector<double> sorted = p.first;
  std::sort(sorted.begin(), sorted.end());
  p.value = sorted[(sorted.size() - 1) / 2];
}

bool CostCurve::knows(double rows) const {
  return std::any_of(points_.begin(), points_.end(),
                     [&](const Point& p) { return half_octave(p.rows) == half_octave(rows); });
}

double CostCurve::line(double rows) const {
  if (points_.empty() || rows <= 0) return 0;
  const Point& last = points_.back();
  if (points_.size() == 1) return last.value * rows / last.rows;
  if (rows >= last.rows) {
    // A long lever, so that the noise of two neighbours does not set the slope.
    auto from = std::find_if(points_.rbegin(), points_.rend(),
                             [&](const Point& p) { return p.rows * 4 <= last.rows; });
    const Point& first = from == points_.rend() ? points_.front() : *from;
    return last.value +
           std::max((last.value - first.value) / (last.rows - first.rows), 0.0) * (rows - last.rows);
  }
  auto right = std::find_if(points_.begin(), points_.end(), [&](const Point& p) { return p.rows > rows; });
  if (right == points_.begin()) ++right;
  return std::max(between(*(right - 1), *right, rows), 0.2 * points_.front().value);
}

double CostCurve::level(double rows, double otherwise) const {
  if (points_.empty()) return otherwise;
  if (rows <= points_.front().rows) return points_.front().value;
  if (rows >= points_.back().rows) return points_.back().value;
  const auto right =
      std::find_if(points_.begin(), points_.end(), [&](const Point& p) { return p.rows > rows; });
  return between(*(right - 1), *right, rows);
}

// ---- attention

void AttentionFit::add(const AttentionWork& work, double ns) {
  if (ns <= 0) return;
  for (size_t i = 0; i < work.size(); ++i) {
    for (size_t j = 0; j < work.size(); ++j)
      squares_[i][j] = kFade * squares_[i][j] + work[i] / ns * (work[j] / ns);
    products_[i] = kFade * products_[i] + work[i] / ns;
  }
  solve();
}

void AttentionFit::set_coefficients(const AttentionWork& c) {
  coefficients_ = c;
}

// Coordinate descent, each coefficient at least 0. A feature that hardly varied apart from the others keeps
// what it had: the small pull towards the old value decides where the data do not.
void AttentionFit::solve() {
  const AttentionWork old = coefficients_;
  for (int round = 0; round < 200; ++round) {
    for (size_t i = 0; i < old.size(); ++i) {
      if (squares_[i][i] <= 0) continue;
      const double pull = 1e-4 * squares_[i][i];
      double rest = products_[i] + pull * old[i];
      for (size_t j = 0; j < old.size(); ++j)
        if (j != i) rest -= squares_[i][j] * coefficients_[j];
      coefficients_[i] = std::max(rest / (squares_[i][i] + pull), 0.0);
    }
  }
}

double AttentionFit::predict(const AttentionWork& work) const {
  double ns = 0;
  for (size_t i = 0; i < work.size(); ++i) ns += coefficients_[i] * work[i];
  return ns;
}

// ---- the table

void CostTable::observe(const StageKinds& kinds, const std::vector<MicroBatchWork>& work,
                        const Program& program, const ObservedStep& step) {
  curves_.resize(kinds.kinds().size());
  if (program.schedule == "sequential")
    observe_alone(kinds, work, program, step);
  else
    observe_overlapped(kinds, work, program, step);
}

void CostTable::follow_pace(double measured, double predicted) {
  if (measured <= 0 || predicted <= 0) return;
  pace_ = std::clamp(pace_ * std::sqrt(std::clamp(measured / predicted, 0.5, 2.0)), 1 / kMostPace, kMostPace);
}

void CostTable::observe_alone(const StageKinds& kinds, const std::vector<MicroBatchWork>& work,
                              const Program& program, const ObservedStep& step) {
  const size_t classes = kinds.classes();
  // The pace shows in what was measured before; of a new size it is not known what it should take.
  const std::vector<double> known =
      stage_costs(program.stages, kinds, predict(kinds, work, /*overlapped=*/false));
  double all = 0, measured = 0, predicted = 0;
  for (size_t s = 0; s < known.size(); ++s) {
    if (program.stages[s].lane != Lane::kCompute) continue;
    const size_t kind = static_cast<size_t>(kinds.class_of(s)) / kRowSets;
    const double rows = work[static_cast<size_t>(program.stages[s].micro_batch)]
                            .rows[static_cast<size_t>(kinds.class_of(s)) % kRowSets];
    all += double{step.busy_ns[s]};
    if (kinds.kinds()[kind].attention || !curves_[kind].knows(rows)) continue;
    measured += double{step.busy_ns[s]};
    predicted += known[s];
  }
  if (measured > 0.5 * all) follow_pace(measured, predicted);
  since_alone_ = 0;
  std::vector<double> ns(work.size() * classes), count(ns.size());
  for (size_t s = 0; s < program.stages.size(); ++s) {
    const size_t at =
        static_cast<size_t>(program.stages[s].micro_batch) * classes + static_cast<size_t>(kinds.class_of(s));
    ns[at] += double{step.busy_ns[s]};
    count[at] += 1;
  }
  for (size_t at = 0; at < ns.size(); ++at) {
    const MicroBatchWork& w = work[at / classes];
    const size_t kind = at % classes / kRowSets, rows_of = at % kRowSets;
    if (count[at] == 0 || w.rows[rows_of] == 0) continue;
    const double mean = ns[at] / count[at];
    if (kinds.kinds()[kind].attention)
      attention_.add(w.attention[rows_of], mean / pace_);
    else
      curves_[kind].add(w.rows[rows_of], kinds.kinds()[kind].lane == Lane::kCompute ? mean / pace_ : mean);
  }
}

void CostTable::observe_overlapped(const StageKinds& kinds, const std::vector<MicroBatchWork>& work,
                                   const Program& program, const ObservedStep& step) {
  const std::vector<double> alone =
      stage_costs(program.stages, kinds, predict(kinds, work, /*overlapped=*/false));
  double compute = 0, compute_alone = 0, comm = 0, comm_alone = 0, collectives = 0;
  for (size_t s = 0; s < alone.size(); ++s) {
    const bool is_comm = program.stages[s].lane == Lane::kComm;
    collectives += is_comm ? 1 : 0;
    (is_comm ? comm : compute) += double{step.busy_ns[s]};
    (is_comm ? comm_alone : compute_alone) += alone[s];
  }
  const double both = comm - step.exposed_ns;  // both lanes were busy
  const double rows = total_rows(work), part = rows / static_cast<double>(work.size());
  // Against a sequential step of long ago it would be the machine's moods that are learnt.
  if (since_alone_++ >= kFresh) {
    double expected = stolen(rows) * std::max(both, 0.0);
    const std::vector<double> costs =
        stage_costs(program.stages, kinds, predict(kinds, work, /*overlapped=*/true));
    for (size_t s = 0; s < costs.size(); ++s)
      if (program.stages[s].lane == Lane::kCompute) expected += costs[s];
    follow_pace(compute, expected);
  } else if (both > 0.05 * comm) {
    // (compute − compute_alone) / both, drawn to what is usual where a step's noise is more than all of that.
    const double noise = kStepNoise * compute, excess = compute - compute_alone;
    stolen_.add_steady(
        rows, std::clamp((excess * both + kUsuallyStolen * noise * noise) / (both * both + noise * noise),
                         0.0, 0.9));
    warmth_.add_steady(part, part * std::clamp(1.0 - compute / compute_alone, 0.0, kMostWarmth));
  }
  // Not below 0: the shortest time over ranks misses what the first of them sent before the last one came.
  if (comm_alone > 0)
    delay_.add_steady(part, std::clamp(comm - comm_alone, 0.0, 2.0 * comm_alone) / collectives);
}

std::vector<float> CostTable::predict(const StageKinds& kinds, const std::vector<MicroBatchWork>& work,
                                      bool overlapped) const {
  const size_t classes = kinds.classes();
  const double part = total_rows(work) / static_cast<double>(std::max<size_t>(work.size(), 1));
  const double delay = overlapped ? delay_.level(part, 0.0) : 0.0,
               pace = pace_ * (overlapped ? 1.0 - warm(part) : 1.0);
  std::vector<float> ns(work.size() * classes);
  for (size_t at = 0; at < ns.size(); ++at) {
    const MicroBatchWork& w = work[at / classes];
    const size_t kind = at % classes / kRowSets, rows_of = at % kRowSets;
    if (kind >= curves_.size() || w.rows[rows_of] == 0) continue;
    const StageKinds::Kind& k = kinds.kinds()[kind];
    const double value =
        k.attention ? attention_.predict(w.attention[rows_of]) : curves_[kind].line(w.rows[rows_of]);
    ns[at] = static_cast<float>(k.lane == Lane::kComm ? std::max(value + delay, 0.5 * value) : value * pace);
  }
  return ns;
}

// The share of its computing that a part of so many rows saves: a fixed time, so less of a larger part.
double CostTable::warm(double rows) const {
  return std::min(warmth_.level(rows, 0.0) / std::max(rows, 1.0), kMostWarmth);
}

double CostTable::stolen(double rows) const {
  return stolen_.level(rows, kUsuallyStolen);
}

// ---- between runs

namespace {

nlohmann::json curve_json(const CostCurve& curve) {
  nlohmann::json points = nlohmann::json::array();
  for (const CostCurve::Point& p : curve.points()) points.push_back({p.rows, p.value, p.weight});
  return points;
}

CostCurve curve_of(const nlohmann::json& points, double least = 0) {
  std::vector<CostCurve::Point> out;
  for (const auto& p : points) out.push_back({p.at(0), p.at(1), p.at(2)});
  const bool sound = std::all_of(out.begin(), out.end(), [least](const CostCurve::Point& p) {
    return p.rows > 0 && std::isfinite(p.value) && p.value >= least && p.weight >= 1;
  });
  if (!sound ||
      !std::is_sorted(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.rows < b.rows; }))
    throw nlohmann::json::other_error::create(501, "unsound curve", nullptr);
  CostCurve curve;
  curve.set_points(std::move(out));
  return curve;
}

}  // namespace

std::string CostTable::dump(const StageKinds& kinds) const {
  nlohmann::json curves;
  for (size_t k = 0; k < curves_.size(); ++k) curves[kinds.kinds()[k].name] = curve_json(curves_[k]);
  return json_text(nlohmann::json{{"version", 3},
                                  {"curves", curves},
                                  {"attention", attention_.coefficients()},
                                  {"stolen", curve_json(stolen_)},
                                  {"delay", curve_json(delay_)},
                                  {"warmth", curve_json(warmth_)},
                                  {"drag", {curve_json(drag_[0]), curve_json(drag_[1])}}},
                   1);
}

bool CostTable::load(const std::string& text, const StageKinds& kinds) {
  CostTable table;
  try {
    const nlohmann::json j = read_json(text);
    if (j.at("version") != 3 || j.at("curves").size() != kinds.kinds().size()) return false;
    for (const StageKinds::Kind& kind : kinds.kinds())
      table.curves_.push_back(curve_of(j.at("curves").at(kind.name)));
    table.attention_.set_coefficients(j.at("attention").get<AttentionWork>());
    table.stolen_ = curve_of(j.at("stolen"));
    table.delay_ = curve_of(j.at("delay"), std::numeric_limits<double>::lowest());
    table.warmth_ = curve_of(j.at("warmth"));
    for (size_t i = 0; i < 2; ++i) table.drag_[i] = curve_of(j.at("drag").at(i));
  } catch (const nlohmann::json::exception&) {
    return false;
  }
  table.version_ = version_ + 1;
  *this = std::move(table);
  return true;
}

}  // namespace duet
