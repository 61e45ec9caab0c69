#if defined(__x86_64__)

#include "sddmm/pack_pairs.hpp"

#include <immintrin.h>

namespace spdf::sddmm {

namespace {

// 16 x 16 transpose of 32-bit words in registers: rows to columns within 128 bits, then the 128-bit parts.
inline void transpose(__m512i* r) {
    __m512i s[16];
    for (int i = 0; i < 16; i += 2) {
        s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(s[i], s[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(s[i], s[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(s[i + 1], s[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(s[i + 1], s[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        s[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        s[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        s[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        s[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; ++i) {
        r[i] = _mm512_shuffle_i32x4(s[i], s[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(s[i], s[i + 8], 0xdd);
    }
}

}  // namespace

void pack_pairs_avx512(const Bf16* x, int64_t row_length, int tokens, int64_t features, float* panel, int64_t stride) {
    for (int64_t f = 0; f < features; f += 16) {
        const int64_t count = features - f < 16 ? features - f : 16;
        const __mmask16 lanes = static_cast<__mmask16>((1u << count) - 1);
        const auto row = [&](int t) {
            return t < tokens ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, x + t * row_length + f))
                              : _mm512_setzero_si512();
        };
        __m512i r[16];
        for (int t = 0; t < 16; ++t) r[t] = _mm512_or_si512(row(t), _mm512_slli_epi32(row(t + 16), 16));
        transpose(r);
        for (int i = 0; i < count; ++i) _mm512_storeu_si512(panel + (f + i) * stride, r[i]);
    }
}

}  // namespace spdf::sddmm

#endif
