// Products with AVX-512 intrinsics, for an Arithmetic that multiplies and adds chunks of 64 bytes. With kSumsAbreast
// the sums of a group are accumulated in turn: with a long latency, one sum after the other would fill the scheduler
// with waiting instructions.
#pragma once

#include <immintrin.h>

#include "sddmm/products.hpp"

namespace spdf::sddmm {

namespace {

// Folds the lanes of a and b in half and concatenates the results, at three distances.
inline __m512 fold_256(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_mask_blend_ps(0xff00, a, b), _mm512_shuffle_f32x4(a, b, 0x4e));
}
inline __m512 fold_64(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, a, b), _mm512_shuffle_ps(a, b, 0x4e));
}
inline __m512 fold_32(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}

inline __m256 fold_64(__m256 a, __m256 b) {
    return _mm256_add_ps(_mm256_blend_ps(a, b, 0xcc), _mm256_shuffle_ps(a, b, 0x4e));
}
inline __m256 fold_32(__m256 a, __m256 b) {
    return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}

// Sums over the lanes of s[0] .. s[size - 1], in order; the other floats are arbitrary.
template <int size>
inline __m256 lane_sums(const __m512* s) {
    if constexpr (size > 4) {
        __m512 wide[4];  // entry i in the lower half, i + 4 in the upper
        for (int i = 0; i < 4; ++i) wide[i] = fold_256(s[i], s[i + 4 < size ? i + 4 : i]);
        const __m512 quads = fold_32(fold_64(wide[0], wide[2]), fold_64(wide[1], wide[3]));  // 0 2 1 3 in each 128 bits
        const __m512 sorted = _mm512_permute_ps(quads, 0xd8);
        const __m256 low = _mm512_castps512_ps256(sorted), high = _mm512_extractf32x8_ps(sorted, 1);
        return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
    } else {
        __m256 half[4];
        for (int i = 0; i < 4; ++i) {
            const __m512 v = s[i < size ? i : 0];
            half[i] = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
        }
        const __m256 quads = _mm256_permute_ps(fold_32(fold_64(half[0], half[2]), fold_64(half[1], half[3])), 0xd8);
        const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps(quads, 1));
        return _mm256_castps128_ps256(sums);
    }
}

template <class Arithmetic, int vectors>
struct Avx512Kernel {
    static constexpr int kVectors = vectors;

    // In registers for all entries of the row.
    struct Row {
        __m512 v[vectors];
        explicit Row(const float* y) {
#pragma GCC unroll 8
            for (int t = 0; t < vectors; ++t) v[t] = _mm512_load_ps(y + t * kChunkFloats);
        }
    };
    template <int size>
    [[gnu::always_inline]] static inline void group(const uint8_t* columns, const Row& y, const float* x, float* to) {
        __m512 sum[size];
        if constexpr (Arithmetic::kSumsAbreast) {
            const float* from[size];
#pragma GCC unroll 8
            for (int i = 0; i < size; ++i) {
                from[i] = x + columns[i] * (vectors * kChunkFloats);
                sum[i] = _mm512_setzero_ps();
            }
#pragma GCC unroll 8
            for (int t = 0; t < vectors; ++t) {
#pragma GCC unroll 8
                for (int i = 0; i < size; ++i) {
                    sum[i] = Arithmetic::add_product(sum[i], y.v[t], from[i] + t * kChunkFloats);
                }
            }
        } else {
#pragma GCC unroll 8
            for (int i = 0; i < size; ++i) {
                const float* from = x + columns[i] * (vectors * kChunkFloats);
                sum[i] = _mm512_setzero_ps();
#pragma GCC unroll 8
                for (int t = 0; t < vectors; ++t) {
                    sum[i] = Arithmetic::add_product(sum[i], y.v[t], from + t * kChunkFloats);
                }
            }
        }
        const __m256 sums = lane_sums<size>(sum);
        if constexpr (size == 8) {
            _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), sums));
        } else {
            constexpr __mmask8 entries = (1u << size) - 1;
            _mm256_mask_storeu_ps(to, entries, _mm256_add_ps(_mm256_maskz_loadu_ps(entries, to), sums));
        }
    }
};

template <class Arithmetic>
constexpr Products avx512_products() {
    return {run_block<Avx512Kernel<Arithmetic, 8>>, run_block<Avx512Kernel<Arithmetic, 4>>,
            run_block<Avx512Kernel<Arithmetic, 2>>, run_block<Avx512Kernel<Arithmetic, 1>>};
}

}  // namespace

}  // namespace spdf::sddmm
