// What cores can do at all, for measured operations to be held against: multiply-adds on registers, reading
// memory. Machines wander, so both are measured in the same run as what they are the limit of.
#pragma once

#include "base/cpu.h"
#include "base/thread_pool.h"
#include "tensor/arena.h"

namespace duet {

/// What is multiplied: float32; pairs of bf16 where the level has an instruction for them, else float32;
/// int8, by VNNI or the exact way of AVX2.
enum class Units : uint8_t { kFloat, kBf16, kInt8 };

/// Multiply-adds on registers, all threads of the pool at once: 10⁹ operations per second, two per
/// multiply-add.
double multiply_rate(CpuLevel level, Units units, ThreadPool& pool);

/// GB/s at which the threads read `buffer`, each its part. It should be larger than all caches.
double read_rate(const AlignedBuffer& buffer, ThreadPool& pool);

}  // namespace duet
