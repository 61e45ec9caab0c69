#if defined(__x86_64__)

#include "peak/runs.hpp"
#include "peak/runs_avx512.hpp"

namespace spdf::peak {

double run_avx512_bf16(int64_t iterations, float seed) {
    const __m512bh factor = (__m512bh)_mm512_set1_ps(seed);
    twelve_chains(iterations, seed, [&](__m512 sum, int) { return _mm512_dpbf16_ps(sum, factor, factor); });
    return 12.0 * 16 * 4 * static_cast<double>(iterations);
}

}  // namespace spdf::peak

#endif
