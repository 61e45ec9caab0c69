// Products with AVX2 intrinsics. Sixteen registers do not hold a row of dy and the sums, so each vector of dy is loaded
// once for all entries of a group. Each multiply-add reads x from memory.
#if defined(__x86_64__)

#include <immintrin.h>

#include "sddmm/products.hpp"

namespace spdf::sddmm {

namespace {

constexpr int kLanes = 8;

// Folds the lanes of a and b in half and concatenates the results, at three distances.
inline __m256 fold_128(__m256 a, __m256 b) {
    return _mm256_add_ps(_mm256_blend_ps(a, b, 0xf0), _mm256_permute2f128_ps(a, b, 0x21));
}
inline __m256 fold_64(__m256 a, __m256 b) {
    return _mm256_add_ps(_mm256_blend_ps(a, b, 0xcc), _mm256_shuffle_ps(a, b, 0x4e));
}
inline __m256 fold_32(__m256 a, __m256 b) {
    return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}

// Sums over the lanes of s[0] .. s[size - 1], in order; the other floats are arbitrary.
template <int size>
inline __m256 lane_sums(const __m256* s) {
    __m256 wide[4];  // entry i in the lower half, i + 4 in the upper
    for (int i = 0; i < 4; ++i) wide[i] = fold_128(s[i < size ? i : 0], s[i + 4 < size ? i + 4 : 0]);
    const __m256 quads = fold_32(fold_64(wide[0], wide[2]), fold_64(wide[1], wide[3]));  // 0 2 1 3 in each 128 bits
    return _mm256_permute_ps(quads, 0xd8);
}

// to[i] += sums[i] for i < size. Nothing else is written, because the memory after it may belong to another thread.
template <int size>
inline void add(float* to, __m256 sums) {
    if constexpr (size == 8) {
        _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), sums));
    } else if constexpr (size >= 4) {
        _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), _mm256_castps256_ps128(sums)));
        alignas(16) float rest[4];
        _mm_store_ps(rest, _mm256_extractf128_ps(sums, 1));
        for (int i = 4; i < size; ++i) to[i] += rest[i - 4];
    } else {
        alignas(16) float rest[4];
        _mm_store_ps(rest, _mm256_castps256_ps128(sums));
        for (int i = 0; i < size; ++i) to[i] += rest[i];
    }
}

template <int vectors>
struct Kernel {
    static constexpr int kVectors = vectors;

    struct Row {
        const float* y;
        explicit Row(const float* row) : y(row) {}
    };

    template <int size>
    [[gnu::always_inline]] static inline void group(const uint8_t* columns, const Row& row, const float* x, float* to) {
        // Two chains of additions per entry if the registers allow it, because an addition takes four or five cycles
        // and two can start per cycle.
        constexpr int chains = size <= 6 ? 2 : 1;
        __m256 sum[size][chains];
        const float* from[size];
#pragma GCC unroll 8
        for (int i = 0; i < size; ++i) {
            from[i] = x + columns[i] * (vectors * kChunkFloats);
            for (int c = 0; c < chains; ++c) sum[i][c] = _mm256_setzero_ps();
        }
#pragma GCC unroll 16
        for (int t = 0; t < vectors * kChunkFloats; t += kLanes) {
            const __m256 y = _mm256_load_ps(row.y + t);
#pragma GCC unroll 8
            for (int i = 0; i < size; ++i) {
                __m256& s = sum[i][t / kLanes % chains];
                s = _mm256_fmadd_ps(y, _mm256_load_ps(from[i] + t), s);
            }
        }
        __m256 sums[size];
#pragma GCC unroll 8
        for (int i = 0; i < size; ++i) sums[i] = chains == 2 ? _mm256_add_ps(sum[i][0], sum[i][chains - 1]) : sum[i][0];
        add<size>(to, lane_sums<size>(sums));
    }
};

}  // namespace

const Products kAvx2Products = {run_block<Kernel<8>>, run_block<Kernel<4>>, run_block<Kernel<2>>, run_block<Kernel<1>>};

}  // namespace spdf::sddmm

#endif
