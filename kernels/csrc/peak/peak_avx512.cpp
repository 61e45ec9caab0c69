#if defined(__x86_64__)

#include <cstdint>
#include <vector>

#include "peak/runs.hpp"
#include "peak/runs_avx512.hpp"

namespace spdf::peak {

double run_avx512(int64_t iterations, float seed) {
    const __m512 factor = _mm512_set1_ps(seed);
    twelve_chains(iterations, seed, [&](__m512 sum, int) { return _mm512_fmadd_ps(sum, factor, factor); });
    return 12.0 * 16 * 2 * static_cast<double>(iterations);
}

double run_fed_avx512(int64_t iterations, int64_t bytes) {
    const int64_t steps = bytes / (12 * 64);
    const std::vector<float> memory(static_cast<size_t>(steps * 12 * 16 + 16), 0.5f);
    const float* first = memory.data();
    first += 16 - reinterpret_cast<uintptr_t>(first) / 4 % 16;  // a load of 64 bytes is one line
    const float* last = first + steps * 12 * 16;
    const float* at = first;
    const __m512 factor = _mm512_set1_ps(0.5f);
    twelve_chains(iterations, 0.5f, [&](__m512 sum, int n) {
        sum = _mm512_fmadd_ps(factor, _mm512_load_ps(at + 16 * n), sum);
        if (n == 11) at = at + 12 * 16 == last ? first : at + 12 * 16;
        return sum;
    });
    return 12.0 * 16 * 2 * static_cast<double>(iterations);
}

}  // namespace spdf::peak

#endif
