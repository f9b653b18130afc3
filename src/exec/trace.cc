#include "exec/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/error.h"

namespace duet {

std::string chrome_events(int rank, const std::vector<TracedStep>& steps, int64_t origin_ns) {
  std::string out;
  auto put = std::back_inserter(out);
  fmt::format_to(put, R"({{"ph":"M","pid":{0},"name":"process_name","args":{{"name":"rank {0}"}}}})", rank);
  for (Lane lane : {Lane::kCompute, Lane::kComm}) {
    fmt::format_to(put,
                   ",\n"
                   R"({{"ph":"M","pid":{},"tid":{},"name":"thread_name","args":{{"name":"{}"}}}})",
                   rank, static_cast<int>(lane), to_string(lane));
  }
  const auto us = [&](int64_t ns) { return static_cast<double>(ns - origin_ns) * 1e-3; };
  int64_t flow = 0;
  for (const TracedStep& step : steps) {
    if (!step.decision.empty() && !step.times.empty()) {
      int64_t start = INT64_MAX;
      for (const StageTime& time : step.times) start = std::min(start, time.start_ns);
      fmt::format_to(put,
                     ",\n"
                     R"({{"ph":"i","s":"t","pid":{},"tid":0,"name":"decision","ts":{:.3f},)"
                     R"("args":{{"step":{},"micro_batches":{},"reason":"{}"}}}})",
                     rank, us(start), step.step, step.program->micro_batches, step.decision);
    }
    for (size_t s = 0; s < step.program->stages.size(); ++s) {
      const Stage& stage = step.program->stages[s];
      const StageTime& time = step.times[s];
      const std::string expert_rows =
          stage.kind == "experts" && !step.expert_rows.empty()
              ? fmt::format(R"("expert_rows":{},)", step.expert_rows[static_cast<size_t>(stage.micro_batch)]
                                                                    [static_cast<size_t>(stage.layer)])
              : "";
      fmt::format_to(
          put,
          ",\n"
          R"({{"ph":"X","pid":{},"tid":{},"name":"{}","cat":"b{}","ts":{:.3f},"dur":{:.3f},)"
          R"("args":{{"step":{},"layer":{},"micro_batch":{},"rows":{},{}"wait_us":{:.3f},"schedule":"{}"}}}})",
          rank, static_cast<int>(stage.lane), stage.kind, stage.micro_batch, us(time.start_ns),
          static_cast<double>(time.end_ns - time.start_ns) * 1e-3, step.step, stage.layer, stage.micro_batch,
          step.rows.empty() ? 0 : step.rows[static_cast<size_t>(stage.micro_batch)], expert_rows,
          static_cast<double>(time.wait_ns) * 1e-3, step.program->schedule);
      for (int w : step.program->waits[s]) {
        const Stage& from = step.program->stages[static_cast<size_t>(w)];
        // The arrow starts just inside the slice it leaves, or viewers bind it to the next one.
        const int64_t leave = std::max(step.times[static_cast<size_t>(w)].start_ns,
                                       step.times[static_cast<size_t>(w)].end_ns - 1);
        const int64_t id = (static_cast<int64_t>(rank) << 40) + flow++;
        fmt::format_to(put,
                       ",\n"
                       R"({{"ph":"s","pid":{},"tid":{},"name":"event","cat":"event","id":{},"ts":{:.3f}}})",
                       rank, static_cast<int>(from.lane), id, us(leave));
        fmt::format_to(
            put,
            ",\n"
            R"({{"ph":"f","bp":"e","pid":{},"tid":{},"name":"event","cat":"event","id":{},"ts":{:.3f}}})",
            rank, static_cast<int>(stage.lane), id, us(time.start_ns));
      }
    }
  }
  return out;
}

void write_chrome_trace(const std::string& path, const std::vector<std::string>& rank_events,
                        const std::string& facts) {
  // A device (/dev/stdout, /dev/full) or a pipe is written to as it is, never renamed over.
  std::error_code ignored;
  const auto status = std::filesystem::status(path, ignored);
  const bool plain = !std::filesystem::exists(status) || std::filesystem::is_regular_file(status);
  const std::string temporary = plain ? path + ".tmp" : path;
  std::ofstream file(temporary, std::ios::binary);
  file << "{\"displayTimeUnit\":\"ms\",\"duet\":{" << facts << "},\n\"traceEvents\":[\n";
  for (size_t r = 0; r < rank_events.size(); ++r) file << (r ? ",\n" : "") << rank_events[r];
  file << "\n]}\n";
  file.close();
  std::error_code error;
  if (file && plain) std::filesystem::rename(temporary, path, error);
  if (!file || error) {
    if (plain) std::filesystem::remove(temporary, ignored);
    throw Error(ErrorKind::kInvalidArgument,
                "cannot write the trace to " + path + "; check the folder and its free space");
  }
}

}  // namespace duet
