#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>

#include "peak/runs.hpp"

namespace spdf::peak {

// Twelve independent sums hide the latency of an addition.
double run_avx2(int64_t iterations, float seed) {
    constexpr int kSums = 12;
    __m256 sums[kSums];
    for (int s = 0; s < kSums; ++s) sums[s] = _mm256_set1_ps(seed * static_cast<float>(s + 1));
    const __m256 factor = _mm256_set1_ps(seed);
    for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
        for (int s = 0; s < kSums; ++s) sums[s] = _mm256_fmadd_ps(sums[s], factor, factor);
    }
    __m256 all = sums[0];
    for (int s = 1; s < kSums; ++s) all = _mm256_add_ps(all, sums[s]);
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, all);
    volatile float kept = lanes[0];
    (void)kept;
    return 2.0 * kSums * 8 * static_cast<double>(iterations);
}

}  // namespace spdf::peak

#endif
