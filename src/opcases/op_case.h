// The compute operations in the shapes that models give them, each with its oracle. One description serves
// the tests (small sizes, every CPU level) and `duet bench kernels` (full sizes). Names of shapes are those
// of models/configs: deepseek-678m's experts and heads, llama-720m's heads.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "opcases/limits.h"

namespace duet {

/// An operation with its operands.
class OpCase {
 public:
  virtual ~OpCase() = default;
  virtual size_t scratch_bytes(int threads) const = 0;
  /// Runs it once, on the next of its sets of operands: where memory is the limit, no set is still in a
  /// cache.
  virtual void run(const KernelContext& cx) = 0;
  /// Runs it and its oracle: the largest difference as a share of what rounding allows, at most 1 where
  /// right.
  virtual double error(const KernelContext& cx) = 0;
  /// Does the same by a library, on one thread; false where none does it or it is not installed.
  virtual bool run_library() { return false; }
};

enum class CaseSize : uint8_t { kSmall, kFull };

struct OpCaseSpec {
  std::string op;       // "gemm"
  std::string shape;    // "512 x 1024 x 1024"
  std::string weights;  // "bf16"; of attention the cache's type
  Rounding rounding = Rounding::kNone;
  Units units = Units::kFloat;
  double flops = 0;    // useful ones, of a run at full size; 0: not counted
  double bytes = 0;    // that a run at full size must bring from memory; 0: its operands stay in caches
  double touched = 0;  // bytes read and written, where neither of the above says anything
  std::function<std::unique_ptr<OpCase>(CaseSize)> make;

  std::string name() const { return op + ' ' + shape + ' ' + weights; }
};

std::vector<OpCaseSpec> op_cases();

/// The library that run_library uses, or empty.
const std::string& library_name();

}  // namespace duet
