// Counter-based random numbers: a pure function of key and counter, so a request's draws do not
// depend on what shares its batch, on preemptions, or on the order of steps. Called by the sampler.
#pragma once

#include <array>
#include <cstdint>

namespace duet {

/// Philox-4x32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

/// Uniform in [0, 1) with 53 bits, for token `position` of continuation `sample` of a request.
double uniform_at(uint64_t seed, uint32_t sample, uint64_t position);

/// A seed of its own for each request that names none.
uint64_t derive_seed(uint64_t engine_seed, uint64_t request_index);

}  // namespace duet
