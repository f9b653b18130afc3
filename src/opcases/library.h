// The BLAS that this machine has, found when the program runs: a yardstick, never a part of Duet.
#pragma once

#include <cstdint>

namespace duet::opcases {

/// c [M, N] = a [M, K] · wᵀ, w [N, K], one thread, by OpenBLAS; false where it is not installed.
bool library_sgemm(int64_t m, int64_t n, int64_t k, const float* a, const float* w, float* c);

}  // namespace duet::opcases
