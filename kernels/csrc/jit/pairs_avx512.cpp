#include "jit/pairs.hpp"

#if defined(__x86_64__)

#include <immintrin.h>

#include "pack/transpose_avx512.hpp"

namespace spdf::jit {

namespace {

// 16 values of 16 bits, one a set bit of `lanes`, spread to 32-bit lanes.
inline __m512i spread(const Bf16* from, __mmask16 lanes) {
    const uint32_t count = (1u << __builtin_popcount(lanes)) - 1;
    const __m256i values = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(count), from);
    return _mm512_maskz_expand_epi32(lanes, _mm512_cvtepu16_epi32(values));
}

}  // namespace

bool pack_pairs(const Bf16* x, int64_t row_length, int tokens, int64_t features, float* tile) {
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    __mmask32 bad = 0;
    for (int64_t f = 0; f < features; f += 32) {
        const int64_t count = features - f < 32 ? features - f : 32;
        const __mmask32 lanes = count == 32 ? ~__mmask32{0} : static_cast<__mmask32>((1u << count) - 1);
        const Bf16* next = ahead(x, 16 * row_length, features, f, 128);
        for (int t = 0; t < tokens; ++t) __builtin_prefetch(next + t * row_length);
        __m512 r[16];
        for (int t = 0; t < 16; ++t) {
            const __m512i pairs = t < tokens ? _mm512_maskz_loadu_epi16(lanes, x + t * row_length + f) : _mm512_setzero_si512();
            bad |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(pairs, exponent), exponent);
            r[t] = _mm512_castsi512_ps(pairs);
        }
        transpose(r);
        float* to = tile + f / 2 * 16;
        const int64_t vectors = (count + 1) / 2;
        if (vectors == 16) {
            for (int i = 0; i < 16; ++i) _mm512_storeu_ps(to + i * 16, r[i]);
        } else {
            for (int i = 0; i < vectors; ++i) _mm512_storeu_ps(to + i * 16, r[i]);
        }
    }
    return bad == 0;
}

void merge_segments(const Bf16* even, const Bf16* odd, const uint32_t* kept_even, const uint32_t* kept_odd,
                    int64_t blocks, Bf16** to) {
    for (int64_t b = 0; b < blocks; ++b) {
        for (int half = 0; half < 2; ++half) {  // 16 rows of the block at a time
            const __mmask16 low = static_cast<__mmask16>(kept_even[b] >> (16 * half));
            const __mmask16 high = static_cast<__mmask16>(kept_odd[b] >> (16 * half));
            const __mmask16 either = low | high;
            const __m512i pairs = _mm512_or_si512(spread(even, low), _mm512_slli_epi32(spread(odd, high), 16));
            const int count = __builtin_popcount(either);
            const __mmask16 filled = static_cast<__mmask16>((1u << count) - 1);
            _mm512_mask_storeu_epi32(to[b], filled, _mm512_maskz_compress_epi32(either, pairs));
            even += __builtin_popcount(low);
            odd += __builtin_popcount(high);
            to[b] += 2 * count;
        }
    }
}

}  // namespace spdf::jit

#endif
