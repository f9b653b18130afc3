// How sizes are cut over ranks, which rank counts a model allows, and which tensors of a
// checkpoint nobody will ask for. Called while a model plans and loads; pure functions.
// Always holds: the slices of all ranks tile [0, total) in rank order.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_set>
#include <vector>

namespace duet {

struct ModelConfig;

/// Half-open range of rows, columns, heads, experts …
struct Slice {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const Slice&) const = default;
};

/// [total · rank / ranks, total · (rank + 1) / ranks): uneven where `ranks` does not divide.
Slice shard(int64_t total, int rank, int ranks);

/// Rank counts that the model can be cut into, ascending. `expert_parallel`: whole experts per
/// rank (the expert count must divide); otherwise every expert is cut along its intermediate size.
std::vector<int> valid_rank_counts(const ModelConfig& config, bool expert_parallel);

/// Throws Error(kInvalidArgument) that says why `ranks` does not work and which counts would.
void check_rank_count(const ModelConfig& config, int ranks, bool expert_parallel);

/// Layer number N of "model.layers.N.…", or −1 for any other name.
int64_t layer_of_tensor(const std::string& name);

/// What a checkpoint holds beyond what the model reads.
struct TensorAudit {
  int64_t mtp_layers = 0;               // layers N ≥ num_hidden_layers (multi-token prediction), not loaded
  int64_t mtp_tensors = 0;              // tensors in them
  std::vector<std::string> unexpected;  // others that the model never asks for, sorted
};

/// `names`: all tensors of the checkpoint; `expected`: those that the model reads on any rank.
/// "…rotary_emb.inv_freq" (recomputed) is never unexpected.
TensorAudit audit_tensors(const std::vector<std::string>& names, int64_t num_hidden_layers,
                          const std::unordered_set<std::string>& expected);

/// One line of log for skipped MTP layers, one warning that names a few unexpected tensors.
void log_audit(const TensorAudit& audit);

}  // namespace duet
