// Measured step costs between runs: a file for each set of machines, model and number of ranks, so that a
// start need not measure again. Rank 0 reads and writes it (RankGroup::calibrate); a
// file that is missing, of something else, damaged or old only means that costs are measured.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/rank_group.h"

namespace duet {

/// Of --dbo-cost-cache: "auto" is $XDG_CACHE_HOME/duet or ~/.cache/duet, "off" (or "auto" without a home) is
/// empty, anything else the directory itself.
std::string cost_cache_directory(const std::string& setting);

/// This machine as far as costs depend on it: CPU model and level, cores, threads per rank; a line. Starts
/// with the host's name and a tab.
std::string describe_machine(CpuLevel level, int threads);

/// All that costs depend on, as JSON. `machines`: describe_machine of every rank; host names count only where
/// there are several, for then a network is part of it.
std::string cost_key(const RankOptions& options, const ModelInfo& info,
                     const std::vector<std::string>& machines);

class CostCache {
 public:
  /// `directory` empty: nothing is kept.
  CostCache(const std::string& directory, std::string key);
  /// Empty where nothing is kept.
  const std::string& file() const { return file_; }
  /// CostTable::dump of the last measurement, or nothing; a log line says why a file was of no use.
  std::optional<std::string> read() const;
  /// A log line, and no more, where it can't be written.
  void write(const std::string& costs) const;

 private:
  std::string file_, key_;
};

}  // namespace duet
