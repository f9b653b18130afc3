#include "cli/trace_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"
#include "cli/trace_slices.h"

namespace duet {
namespace {

constexpr double kWidth = 1180, kLeft = 90, kBar = 30, kLaneGap = 8, kPanel = 150;
// A micro-batch has one colour on both lanes, so the eye can follow it; dark enough for white text.
constexpr std::array<const char*, 6> kColours{"#2563a8", "#b3541e", "#3d7a3a",
                                              "#7a4a9e", "#8a6d1b", "#5a6472"};

struct Panel {
  std::string title;
  std::vector<TraceSlice> slices;
  double begin_us = 0, end_us = 0;
};

/// The slices of one step that touch the time in which `layer` ran.
Panel cut_panel(const std::vector<TraceSlice>& slices, int64_t step, int64_t layer) {
  Panel panel;
  bool found = false;
  int64_t micro_batches = 0;
  bool sequential = true;
  for (const TraceSlice& s : slices) {
    if (s.step != step) continue;
    micro_batches = std::max(micro_batches, s.micro_batch + 1);
    sequential = s.sequential;
    if (s.layer != layer) continue;
    panel.begin_us = found ? std::min(panel.begin_us, s.start_us) : s.start_us;
    panel.end_us = found ? std::max(panel.end_us, s.start_us + s.duration_us) : s.start_us + s.duration_us;
    found = true;
  }
  for (const TraceSlice& s : slices) {
    if (s.step == step && s.start_us < panel.end_us && s.start_us + s.duration_us > panel.begin_us)
      panel.slices.push_back(s);
  }
  panel.title = sequential ? "overlap off" : fmt::format("overlap on, {} micro-batches", micro_batches);
  return panel;
}

void draw(const Panel& panel, int64_t layer, double top, double us_per_pixel, std::string& svg) {
  const double span = panel.end_us - panel.begin_us;
  svg += fmt::format(R"(<text x="{}" y="{:.1f}" class="t">{}: layer {} in {:.2f} ms</text>)"
                     "\n",
                     kLeft, top + 16, panel.title, layer, span / 1000);
  for (int lane = 0; lane < 2; ++lane) {
    const double y = top + 28 + lane * (kBar + kLaneGap);
    svg += fmt::format(
        R"(<text x="8" y="{:.1f}" class="l">{}</text><rect x="{}" y="{:.1f}" width="{:.1f}" height="{}" class="g"/>)"
        "\n",
        y + 19, lane == 0 ? "compute" : "comm", kLeft, y, span / us_per_pixel, kBar);
  }
  for (const TraceSlice& s : panel.slices) {
    const double from = std::max(s.start_us, panel.begin_us),
                 to = std::min(s.start_us + s.duration_us, panel.end_us);
    const double x = kLeft + (from - panel.begin_us) / us_per_pixel,
                 width = std::max((to - from) / us_per_pixel, 0.5);
    const double y = top + 28 + s.lane * (kBar + kLaneGap);
    svg += fmt::format(
        R"(<rect x="{:.2f}" y="{:.1f}" width="{:.2f}" height="{}" fill="{}" fill-opacity="{}" stroke="#fff" stroke-width="0.6"><title>L{}.b{} {} {:.1f} µs</title></rect>)"
        "\n",
        x, y, width, kBar, kColours[static_cast<size_t>(s.micro_batch) % kColours.size()],
        s.layer == layer ? "1" : "0.35", s.layer, s.micro_batch, s.kind, s.duration_us);
    const std::string label = s.kind;
    if (width >
        6.6 * static_cast<double>(label.size()) + 6) {  // a letter of the 11 px font is about 6.4 px wide
      svg += fmt::format(R"(<text x="{:.2f}" y="{:.1f}" class="b">{}</text>)"
                         "\n",
                         x + width / 2, y + 19, label);
    }
  }
}

}  // namespace

std::string trace_chart_svg(std::string_view text, const std::string& file, int64_t layer, int rank) {
  const nlohmann::json trace = parse_trace(text, file);
  std::vector<TraceSlice> slices = read_slices(trace["traceEvents"], file);
  std::erase_if(slices, [&](const TraceSlice& s) { return s.rank != rank; });
  std::map<std::pair<bool, int64_t>, int64_t> last;  // (sequential, micro-batches) → step
  std::map<int64_t, int64_t> parts;
  for (const TraceSlice& s : slices) {
    if (s.layer == layer) parts[s.step] = std::max(parts[s.step], s.micro_batch + 1);
  }
  for (const TraceSlice& s : slices) {
    if (parts.count(s.step)) last[{!s.sequential, parts[s.step]}] = s.step;
  }
  std::vector<Panel> panels;
  double longest = 0;
  for (const auto& [key, step] : last) {  // sequential first, then by micro-batches
    panels.push_back(cut_panel(slices, step, layer));
    longest = std::max(longest, panels.back().end_us - panels.back().begin_us);
  }
  if (panels.empty()) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("{}: no slice of layer {} on rank {}", file, layer, rank));
  }
  const double us_per_pixel = std::max(longest, 1e-3) / (kWidth - kLeft - 20);
  const double height = kPanel * static_cast<double>(panels.size()) - 20;
  std::string svg = fmt::format(
      R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" font-family="sans-serif">
<style>.t{{font-size:14px;font-weight:bold}}.l{{font-size:12px}}.b{{font-size:11px;fill:#fff;text-anchor:middle}}.g{{fill:#eceff1}}</style>
<rect width="100%" height="100%" fill="#fff"/>
)",
      kWidth, height);
  for (size_t i = 0; i < panels.size(); ++i) {
    draw(panels[i], layer, kPanel * static_cast<double>(i), us_per_pixel, svg);
  }
  svg += fmt::format(
      R"(<text x="{}" y="{:.1f}" class="l">one time scale; a colour is a micro-batch; pale: other layers</text>)"
      "\n</svg>\n",
      kLeft, height - 8);
  return svg;
}

}  // namespace duet
