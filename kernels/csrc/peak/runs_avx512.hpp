#pragma once

#include <immintrin.h>

#include <cstdint>

namespace spdf::peak {

namespace {

// 12 independent sums hide the latency of `step`, which gets a sum and its number. They are named variables, so that
// they stay in registers, with different values, so that the compiler does not merge them.
template <class Step>
inline void twelve_chains(int64_t iterations, float seed, Step step) {
    const auto start = [seed](float n) { return _mm512_set1_ps(seed * n); };
    __m512 a = start(1), b = start(2), c = start(3), d = start(4), e = start(5), f = start(6);
    __m512 g = start(7), h = start(8), i = start(9), j = start(10), k = start(11), l = start(12);
    for (int64_t n = 0; n < iterations; ++n) {
        a = step(a, 0), b = step(b, 1), c = step(c, 2), d = step(d, 3), e = step(e, 4), f = step(f, 5);
        g = step(g, 6), h = step(h, 7), i = step(i, 8), j = step(j, 9), k = step(k, 10), l = step(l, 11);
    }
    const __m512 sum = a + b + c + d + e + f + g + h + i + j + k + l;
    volatile float kept = _mm512_reduce_add_ps(sum);
    (void)kept;
}

}  // namespace

}  // namespace spdf::peak
