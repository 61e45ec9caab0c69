#if defined(__x86_64__)

#include "sddmm/pack_pairs.hpp"

#include <immintrin.h>

#include "pack/transpose_avx512.hpp"

namespace spdf::sddmm {

void pack_pairs_avx512(const Bf16* x, int64_t row_length, int tokens, int64_t features, float* panel, int64_t stride) {
    for (int64_t f = 0; f < features; f += 16) {
        const int64_t count = features - f < 16 ? features - f : 16;
        const __mmask16 lanes = static_cast<__mmask16>((1u << count) - 1);
        if (f % 32 == 0) {  // a line of each row
            const Bf16* next = ahead(x, 32 * row_length, features, f, 128);
            for (int t = 0; t < tokens; ++t) __builtin_prefetch(next + t * row_length);
        }
        const auto row = [&](int t) {
            return t < tokens ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, x + t * row_length + f))
                              : _mm512_setzero_si512();
        };
        __m512 r[16];
        for (int t = 0; t < 16; ++t) {
            r[t] = _mm512_castsi512_ps(_mm512_or_si512(row(t), _mm512_slli_epi32(row(t + 16), 16)));
        }
        transpose(r);
        for (int i = 0; i < count; ++i) _mm512_storeu_ps(panel + (f + i) * stride, r[i]);
    }
}

}  // namespace spdf::sddmm

#endif
