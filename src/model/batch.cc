#include "model/batch.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "load/shard.h"

namespace duet {

namespace {

[[noreturn]] void bad(const std::string& what) {
  throw Error(ErrorKind::kInternal, "step batch: " + what);
}

// Fixed-width fields, then the arrays; both ends are the same program on the same architecture
// (build ids are compared at start).
class Writer {
 public:
  template <typename T>
  void vector(const std::vector<T>& values) {
    const uint64_t count = values.size();
    raw(&count, sizeof(count));
    raw(values.data(), values.size() * sizeof(T));
  }
  void raw(const void* data, size_t bytes) {
    const auto* p = static_cast<const std::byte*>(data);
    out_.insert(out_.end(), p, p + bytes);
  }
  std::vector<std::byte> take() { return std::move(out_); }

 private:
  std::vector<std::byte> out_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <typename T>
  void vector(std::vector<T>& values) {
    uint64_t count = 0;
    raw(&count, sizeof(count));
    if (count > bytes_.size() / sizeof(T)) fail();
    values.resize(count);
    raw(values.data(), count * sizeof(T));
  }
  void raw(void* data, size_t bytes) {
    if (bytes > bytes_.size()) fail();
    if (bytes > 0) std::memcpy(data, bytes_.data(), bytes);
    bytes_ = bytes_.subspan(bytes);
  }
  bool at_end() const { return bytes_.empty(); }
  [[noreturn]] static void fail() {
    throw Error(ErrorKind::kPeer, "rank 0 sent bytes that are not a step batch");
  }

 private:
  std::span<const std::byte> bytes_;
};

// A field that is not cut below or not sent would be a silent bug: a new one must come past here.
static_assert(sizeof(StepBatch) == 7 * sizeof(std::vector<int>) + 8,
              "serialize, check and cut the new field");
static_assert(sizeof(SequenceSpan) == 48, "serialize, check and cut the new field");

}  // namespace

std::vector<std::byte> serialize(const StepBatch& batch) {
  Writer w;
  w.vector(batch.token_ids);
  w.vector(batch.spans);
  w.vector(batch.block_tables);
  w.vector(batch.logits_rows);
  w.vector(batch.best_rows);
  w.vector(batch.borders);
  w.vector(batch.stage_ns);
  w.raw(&batch.overlap, sizeof(batch.overlap));
  w.raw(&batch.lockstep, sizeof(batch.lockstep));
  w.raw(&batch.observe, sizeof(batch.observe));
  w.raw(&batch.stolen, sizeof(batch.stolen));
  return w.take();
}

StepBatch deserialize_batch(std::span<const std::byte> bytes) {
  StepBatch batch;
  Reader r(bytes);
  r.vector(batch.token_ids);
  r.vector(batch.spans);
  r.vector(batch.block_tables);
  r.vector(batch.logits_rows);
  r.vector(batch.best_rows);
  r.vector(batch.borders);
  r.vector(batch.stage_ns);
  r.raw(&batch.overlap, sizeof(batch.overlap));
  r.raw(&batch.lockstep, sizeof(batch.lockstep));
  r.raw(&batch.observe, sizeof(batch.observe));
  r.raw(&batch.stolen, sizeof(batch.stolen));
  if (!r.at_end()) Reader::fail();
  return batch;
}

void check_batch(const StepBatch& batch, const BatchLimits& limits) {
  const int64_t rows = batch.rows();
  if (rows < 1 || rows > limits.max_rows)
    bad(fmt::format("{} rows, the buffers hold 1 to {}", rows, limits.max_rows));
  int64_t next = 0;
  for (const SequenceSpan& span : batch.spans) {
    if (span.first_row != next || span.rows < 1)
      bad(fmt::format("a span begins at row {} where {} is due", span.first_row, next));
    next += span.rows;
    const int64_t end = span.start_position + span.rows;
    if (span.start_position < 0 || end > limits.max_positions) {
      bad(fmt::format("positions up to {}, the model has {}", end, limits.max_positions));
    }
    if (span.block_table < 0 || span.blocks < 0 ||
        span.block_table + span.blocks > static_cast<int64_t>(batch.block_tables.size()) ||
        span.blocks * limits.block_size < end) {
      bad(fmt::format("a span that ends at position {} has {} blocks of {}", end, span.blocks,
                      limits.block_size));
    }
  }
  if (next != rows) bad(fmt::format("spans cover {} of {} rows", next, rows));
  for (int32_t token : batch.token_ids) {
    if (token < 0 || token >= limits.vocab_size)
      bad(fmt::format("token {} of a vocabulary of {}", token, limits.vocab_size));
  }
  for (int32_t block : batch.block_tables) {
    if (block < 0 || block >= limits.kv_blocks)
      bad(fmt::format("block {} of a cache of {}", block, limits.kv_blocks));
  }
  if (static_cast<int64_t>(batch.logits_rows.size()) > limits.max_logits_rows) {
    bad(fmt::format("{} rows of logits, the buffer holds {}", batch.logits_rows.size(),
                    limits.max_logits_rows));
  }
  int32_t last = -1;
  for (int32_t row : batch.logits_rows) {
    if (row <= last || row >= rows) bad("logits rows must ascend within the batch");
    last = row;
  }
  if (!std::is_sorted(batch.best_rows.begin(), batch.best_rows.end()) ||
      std::adjacent_find(batch.best_rows.begin(), batch.best_rows.end()) != batch.best_rows.end() ||
      !std::includes(batch.logits_rows.begin(), batch.logits_rows.end(), batch.best_rows.begin(),
                     batch.best_rows.end())) {
    bad("rows whose likeliest token is wanted must ascend among the logits rows");
  }
  if (batch.borders.size() < 2 || batch.borders.front() != 0 || batch.borders.back() != rows ||
      !std::is_sorted(batch.borders.begin(), batch.borders.end()) ||
      std::adjacent_find(batch.borders.begin(), batch.borders.end()) != batch.borders.end()) {
    bad("micro-batch borders must ascend from 0 to the number of rows");
  }
  if (batch.micro_batches() > limits.max_micro_batches) {
    bad(fmt::format("{} micro-batches, buffers were made for {}", batch.micro_batches(),
                    limits.max_micro_batches));
  }
}

std::vector<MicroBatch> cut_batch(const StepBatch& batch, int block_size, int ranks) {
  std::vector<MicroBatch> parts(static_cast<size_t>(batch.micro_batches()));
  size_t logits = 0;
  for (size_t m = 0; m < parts.size(); ++m) {
    MicroBatch& part = parts[m];
    const int64_t begin = batch.borders[m], end = batch.borders[m + 1];
    part.first_row = begin;
    part.rows = end - begin;
    part.first_logits_row = static_cast<int64_t>(logits);
    for (; logits < batch.logits_rows.size() && batch.logits_rows[logits] < end; ++logits) {
      const bool best =
          std::binary_search(batch.best_rows.begin(), batch.best_rows.end(), batch.logits_rows[logits]);
      (best ? part.best_rows : part.whole_rows).push_back(std::ssize(part.logits_rows));
      part.logits_rows.push_back(batch.logits_rows[logits] - begin);
    }
    for (int r = 0; r <= ranks; ++r)
      part.owned.push_back(r < ranks ? shard(part.rows, r, ranks).begin : part.rows);
    for (const SequenceSpan& span : batch.spans) {
      const int64_t first = std::max(span.first_row, begin), last = std::min(span.first_row + span.rows, end);
      if (first >= last) continue;
      const int64_t start = span.start_position + (first - span.first_row);
      const int32_t* blocks = batch.block_tables.data() + span.block_table;
      part.spans.push_back({first - begin, last - first, start, span.form, blocks, last - first < span.rows});
      for (int64_t p = start; p < start + (last - first); ++p) {
        part.positions.push_back(static_cast<int32_t>(p));
        part.slots.push_back(int64_t{blocks[p / block_size]} * block_size + p % block_size);
      }
    }
  }
  return parts;
}

}  // namespace duet
