#include "golden/harness.h"
#include "base/json_text.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "comm/mpi_transport.h"
#include "load/safetensors.h"

namespace duet {

std::string golden_dir(const std::string& name) {
  return std::string(DUET_FIXTURES) + "/golden/" + name;
}

Golden load_golden(const std::string& name) {
  Golden golden;
  const nlohmann::json json = read_json(std::ifstream(golden_dir(name) + "/golden.json"));
  golden.prompts = json.at("prompts").get<std::vector<std::vector<int32_t>>>();
  golden.greedy = json.at("greedy").get<std::vector<std::vector<int32_t>>>();
  const SafetensorsFile file = SafetensorsFile::open(golden_dir(name) + "/golden_logits.safetensors");
  for (size_t i = 0; i < golden.prompts.size(); ++i) {
    const SafetensorsEntry* entry = file.find("logits." + std::to_string(i));
    std::vector<float> values((entry->end - entry->begin) / sizeof(float));
    std::memcpy(values.data(), file.data(*entry), values.size() * sizeof(float));
    golden.vocab = entry->shape.at(1);
    golden.logits.push_back(std::move(values));
  }
  return golden;
}

RankOptions golden_options(const std::string& model_dir, int ranks, ExpertPath path) {
  RankOptions options;
  options.model = model_dir;
  options.dtype = ComputeDtype::kFloat32;
  options.ranks = ranks;
  options.threads_per_rank = 1;
  options.expert_path = path;
  options.wire = DType::kF32;
  options.max_batched_tokens = 512;
  options.max_logits_rows = 512;
  options.block_size = 5;
  options.kv_cache_bytes = int64_t{4} << 20;
  options.max_micro_batches = 3;
  return options;
}

std::unique_ptr<RankGroup> start_group(RankOptions options) {
  if (launched_under_mpi()) {
    if (mpi_world_size_from_env() != options.ranks) return nullptr;
    options.backend = Backend::kMpi;
    const char* transport = std::getenv("DUET_COMM_TRANSPORT");
    if (transport != nullptr && transport == std::string("tcp")) options.comm_transport = CommTransport::kTcp;
  }
  return RankGroup::start(options);
}

std::vector<std::vector<float>> run_prompts(RankGroup& group,
                                            const std::vector<std::vector<int32_t>>& prompts,
                                            const Cut& cut) {
  const int block_size = group.info().block_size;
  const int64_t vocab = group.info().config.vocab_size;
  std::vector<std::vector<float>> logits(prompts.size());
  std::vector<std::vector<int32_t>> tables(prompts.size());
  // Odd blocks first, then even ones.
  std::vector<int32_t> free_blocks;
  for (int odd : {1, 0}) {
    for (int32_t b = static_cast<int32_t>(group.info().kv_blocks) - 1; b >= 0; --b) {
      if (b % 2 == odd) free_blocks.push_back(b);
    }
  }
  size_t next_block = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const size_t blocks =
        (prompts[i].size() + static_cast<size_t>(block_size) - 1) / static_cast<size_t>(block_size);
    for (size_t b = 0; b < blocks; ++b) tables[i].push_back(free_blocks.at(next_block++));
  }
  std::vector<int64_t> done(prompts.size(), 0);
  while (true) {
    StepBatch batch;
    std::vector<size_t> owner;
    for (size_t i = 0; i < prompts.size(); ++i) {
      int64_t n = static_cast<int64_t>(prompts[i].size()) - done[i];
      if (cut.decode)
        n = std::min<int64_t>(n, 1);
      else if (cut.chunk > 0)
        n = std::min(n, cut.chunk);
      n = std::min(n, cut.max_rows - batch.rows());
      if (n <= 0) continue;
      batch.spans.push_back(
          {batch.rows(), n, done[i], cut.decode ? AttentionForm::kAbsorbed : AttentionForm::kExpanded,
           static_cast<int64_t>(batch.block_tables.size()), static_cast<int64_t>(tables[i].size())});
      batch.block_tables.insert(batch.block_tables.end(), tables[i].begin(), tables[i].end());
      for (int64_t t = 0; t < n; ++t) {
        batch.logits_rows.push_back(static_cast<int32_t>(batch.rows()));
        batch.token_ids.push_back(prompts[i][static_cast<size_t>(done[i] + t)]);
        owner.push_back(i);
      }
      done[i] += n;
    }
    const int64_t rows = batch.rows();
    if (rows == 0) break;
    batch.borders = {0};
    if (!cut.borders.empty()) {
      for (int64_t b : cut.borders) {
        if (b > batch.borders.back() && b < rows) batch.borders.push_back(b);
      }
    } else {
      for (int m = 1; m < cut.micro_batches; ++m) {
        const int64_t b = rows * m / cut.micro_batches;
        if (b > batch.borders.back() && b < rows) batch.borders.push_back(b);
      }
    }
    batch.borders.push_back(rows);
    batch.overlap = cut.overlap && batch.micro_batches() > 1;
    const StepResult result = group.run(batch);
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = result.logits.data() + r * vocab;
      std::vector<float>& out = logits[owner[static_cast<size_t>(r)]];
      out.insert(out.end(), row, row + vocab);
    }
  }
  return logits;
}

double relative_error(const std::vector<float>& x, const std::vector<float>& y) {
  if (x.size() != y.size()) return INFINITY;
  double difference = 0, norm = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    difference += (double{x[i]} - y[i]) * (double{x[i]} - y[i]);
    norm += double{y[i]} * y[i];
  }
  return std::sqrt(difference / norm);
}

std::vector<double> token_errors(const Logits& x, const Logits& y, int64_t vocab) {
  std::vector<double> errors;
  EXPECT_EQ(x.size(), y.size());
  for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
    EXPECT_EQ(x[i].size(), y[i].size());
    for (size_t at = 0; at < std::min(x[i].size(), y[i].size()); at += static_cast<size_t>(vocab)) {
      const auto row = [&](const std::vector<float>& v) {
        const auto from = v.begin() + static_cast<int64_t>(at);
        return std::vector<float>(from, from + vocab);
      };
      errors.push_back(relative_error(row(x[i]), row(y[i])));
    }
  }
  std::sort(errors.begin(), errors.end());
  return errors;
}

bool same_bits(const Logits& a, const Logits& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].size() != b[i].size() || std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) != 0)
      return false;
  }
  return true;
}

std::vector<int32_t> random_tokens(int64_t count, int64_t vocab, unsigned seed) {
  std::mt19937 rng(seed);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i)
    tokens.push_back(static_cast<int32_t>(rng() % static_cast<unsigned>(vocab)));
  return tokens;
}

}  // namespace duet
