#include "peak/runs.hpp"

namespace spdf::peak {

double run_portable(int64_t iterations, float seed) {
    constexpr int kLanes = 64;  // enough independent chains to hide the latency
    float sums[kLanes];
    for (int l = 0; l < kLanes; ++l) sums[l] = seed * static_cast<float>(l + 1);
    for (int64_t i = 0; i < iterations; ++i) {
        for (int l = 0; l < kLanes; ++l) sums[l] = sums[l] * seed + seed;
    }
    volatile float kept = 0;
    for (int l = 0; l < kLanes; ++l) kept = kept + sums[l];
    return 2.0 * kLanes * static_cast<double>(iterations);
}

}  // namespace spdf::peak
